GRANT coord_user TO bench;
