"""What runs on the device, or emulates one. Imports grpcio, protobuf and numpy, nothing more."""

__version__ = "0.1.0"
