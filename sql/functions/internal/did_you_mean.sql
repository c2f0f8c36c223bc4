-- Returns the candidate that is spelt most like a word as the end of a sentence (`; did you mean "order_paid"?`), or an empty
-- text if none shares at least half of the word's pairs of neighbouring letters.
create or replace function notify_worker.did_you_mean(word text, candidates text[])
returns text
language sql
immutable
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    select coalesce(
        (
            select format('; did you mean "%s"?', candidate)
            from unnest(candidates) as candidate,
                lateral (
                    select count(*) filter (where position(pair in lower(candidate)) > 0) as same, count(*) as pairs
                    from (
                        select substr(lower(left(word, 100)), at, 2) as pair
                        from generate_series(1, length(left(word, 100)) - 1) as at
                    ) as neighbours
                ) as likeness
            where 2 * likeness.same >= likeness.pairs and likeness.same > 0
            order by likeness.same desc, abs(length(candidate) - length(word)), candidate
            limit 1
        ),
        ''
    )
$$;
