"""Raw files of any kind -> records, one at a time, whatever their size."""
