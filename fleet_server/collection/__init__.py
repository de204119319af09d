"""What of the store nobody needs any more, and how it goes."""
