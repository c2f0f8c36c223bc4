"""How a worker process lives: started, supervised, woken, stopped; and how it rescues the work of dead ones."""
