"""The pages of the app. Each asks, calls the pipeline, and draws."""
