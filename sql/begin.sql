\echo Use "CREATE EXTENSION coord" to load this file. \quit

CREATE SCHEMA coord;
CREATE SCHEMA coord_internal;
