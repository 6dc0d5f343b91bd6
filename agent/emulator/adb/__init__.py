"""The device side of adb: transport, services, file sync, shell, faults and the sandbox."""
