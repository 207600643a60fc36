"""How a run is started, watched and restarted on machines of each kind."""
