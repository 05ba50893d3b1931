"""An app's connector on the pool or engine that the application has anyway."""
