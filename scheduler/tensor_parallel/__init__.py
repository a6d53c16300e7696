"""One operator split over several devices."""
