"""The HTP back end: SoC table, compile options, compiler, emulator, context metadata."""
