"""What benchmarks/hospital_day.py is made of: virtual time, a queue and a PACS in it, and a site that lives there."""
