"""What every benchmark here is made with: clocks, counters, processes, folders that go, tables, the workload."""
