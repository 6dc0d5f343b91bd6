"""The main job: plan, build every variant, run it on the device, measure, store."""
