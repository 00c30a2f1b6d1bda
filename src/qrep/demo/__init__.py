"""`qrep demo`: two agents on this machine replicate a real volume through real crashes, and a stranger's b3sum checks every step."""
