/*-------------------------------------------------------------------------
 *
 * repair.h
 *	  What operators' verbs share; see twophase_repair.c.
 *
 *-------------------------------------------------------------------------
 */
#ifndef COORD_REPAIR_H
#define COORD_REPAIR_H

#include "postgres.h"

#include "nodes/pg_list.h"

#include "twophase/gid.h"
#include "twophase/remote.h"

/* A prepared transaction of an adopted incarnation, and what settling it came to. */
typedef struct Prepared
{
	const char *text;
	Gid			gid;
	Oid			server;
	Oid			role;			/* as whom the participant was asked */
	bool		mine;			/* its user may finish it */
	bool		settled;
	bool		committed;
	const char *reason;			/* why it is not settled */
} Prepared;

extern void repair_check(const char *function);
extern List *repair_roles(Oid server, bool own);
extern Remote *repair_connect(Oid role, Oid server, char **error);
extern PGresult *repair_ask(Remote *remote, const char *sql, const char *value, char **error);
extern void repair_log(const char *event, const char *gid, Oid server, const char *outcome,
					   const char *reason);
extern char *repair_noted_outcome(const char *gid);
extern char *repair_noted_outcome_of(int64 gtid);

/* settle.c */
extern void settle(Prepared *prepared, int count);

#endif							/* COORD_REPAIR_H */
