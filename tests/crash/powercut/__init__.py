"""What happens to files when the power goes: operations recorded, every legal disk rebuilt, each one recovered."""
