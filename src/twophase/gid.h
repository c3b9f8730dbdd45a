/*-------------------------------------------------------------------------
 *
 * gid.h
 *	  Names of prepared transactions; see gid.c.
 *
 *-------------------------------------------------------------------------
 */
#ifndef COORD_GID_H
#define COORD_GID_H

#include "postgres.h"

#include "utils/uuid.h"

/* PostgreSQL's own limit, with the terminating zero. */
#define GID_SIZE 200

typedef struct Gid
{
	pg_uuid_t	cluster;
	Oid			database;
	int			incarnation;
	int64		gtid;
	int			number;			/* from 1 */
	int			count;
	Oid			next_server;	/* of the next participant */
	uint64		next_xid;		/* its transaction there; 0: not known */
} Gid;

extern void gid_write(char *buffer, const Gid *gid);
extern bool gid_read(const char *text, Gid *gid);
extern void gid_prefix(char *buffer, const pg_uuid_t *cluster);

#endif							/* COORD_GID_H */
