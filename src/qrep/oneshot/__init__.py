"""`qrep copy`: one source to one target with the whole engine and no agent, here or over ssh."""
