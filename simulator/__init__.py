"""The world: machine, model, workload, policy, schedule, cost, event loop and trace."""
