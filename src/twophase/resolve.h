/*-------------------------------------------------------------------------
 *
 * resolve.h
 *	  One look at all participants; see resolve.c.
 *
 *-------------------------------------------------------------------------
 */
#ifndef COORD_RESOLVE_H
#define COORD_RESOLVE_H

#include "postgres.h"

#include "nodes/pg_list.h"

#include "twophase/twophase_shared.h"

/* What was done to a prepared transaction, for who asked. */
typedef struct Resolution
{
	char	   *gid;
	Oid			server;
	const char *action;			/* committed, rolled back, in doubt, left, failed */
	char	   *detail;
} Resolution;

extern int64 resolve_forgotten(void);
extern bool resolve(TwophaseDatabase *database, Oid server, List **resolutions);
extern bool resolve_is_safe(void);
extern void resolve_take_turn(void);

#endif							/* COORD_RESOLVE_H */
