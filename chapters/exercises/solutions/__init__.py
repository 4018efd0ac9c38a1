"""One solution for every exercise, under the name that the chapter's cell uses. Look after you have tried."""
