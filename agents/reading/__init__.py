"""What readers, snapshots and watches are made of: whose memory it is, records as entities, scans, and looking back."""
