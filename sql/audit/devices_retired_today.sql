-- Devices that were retired today, by project and reason: psql -f sql/audit/devices_retired_today.sql
select
    project,
    kind,
    retired_reason,
    count(*) as devices,
    count(distinct receiver_id) as receivers,
    min(retired_at) as first_at,
    max(retired_at) as last_at
from notify_worker.devices
where retired_at >= date_trunc('day', now())
group by project, kind, retired_reason
order by devices desc;
