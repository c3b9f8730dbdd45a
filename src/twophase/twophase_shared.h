/*-------------------------------------------------------------------------
 *
 * twophase_shared.h
 *	  Shared memory of two-phase commit; see twophase_shared.c.
 *
 *-------------------------------------------------------------------------
 */
#ifndef COORD_TWOPHASE_SHARED_H
#define COORD_TWOPHASE_SHARED_H

#include "postgres.h"

#include "port/atomics.h"
#include "storage/condition_variable.h"
#include "storage/lwlock.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "base/doorbell.h"
#include "twophase/twophase.h"

#define TWOPHASE_UNACKNOWLEDGED 256
#define TWOPHASE_REQUESTS 32

/* What a database's sessions and its resolver tell each other. */
typedef struct TwophaseDatabase
{
	Oid			database;		/* InvalidOid: free */
	int			resolver_pid;	/* 0: none */
	int			resolver_procno;
	bool		starting;		/* one was asked for */
	TimestampTz started_at;
	bool		wanted;			/* now */
	bool		waits_for_resume;	/* it was not allowed to act */
	TimestampTz next_at;		/* or then; 0: not */
	TimestampTz retry_at;		/* none before */
	TimestampTz late_until;		/* something may still be prepared that was given up */

	/* Of this run of the server; 0: the resolver has not looked yet. */
	int			incarnation;
	Oid			installation;	/* coord_internal's oid then: another extension, another story */
	pg_uuid_t	cluster;
	int64		first_gtid;		/* of what was decided in this run of the server */
	int64		began_gtid;		/* and in this incarnation */
	TimestampTz covered_from;	/* decisions have a partition from then .. */
	TimestampTz covered_until;	/* .. until then */

	/* Mappings that want to be written down as participants. */
	int			nrequests;
	struct
	{
		Oid			mapping;
		Oid			role;
	}			requests[TWOPHASE_REQUESTS];
	ConditionVariable answered;

	/* Decisions of this run that not every participant has acknowledged. */
	int			nunacknowledged;
	bool		many;			/* more than there is room for */
	int64		unacknowledged[TWOPHASE_UNACKNOWLEDGED];

	/* What the resolver found last. */
	bool		looked;
	int			nunresolved;	/* gids that are not finished, and in doubt */
	int			nunreachable;	/* participants that could not be asked */
	int64		resurrected;
	int64		committed;
	int64		rolled_back;
} TwophaseDatabase;

/* What a session is about; written by itself. */
typedef struct TwophaseSession
{
	pg_atomic_uint64 gtid;		/* its transaction is being prepared or decided; 0: none */
	Oid			database;
	int			pid;
	Oid			role;
	TimestampTz since;
	volatile int participants;
} TwophaseSession;

typedef struct TwophaseShared
{
	LWLock		lock;
	int			tranche;
	int			nsessions;
	TwophaseDatabase databases[COORD_MAX_DATABASES];
	TwophaseSession sessions[FLEXIBLE_ARRAY_MEMBER];
} TwophaseShared;

extern TwophaseShared *twophase_shared;

extern void twophase_attach(void);
extern TwophaseDatabase *twophase_database(void);
extern TwophaseDatabase *twophase_database_by_oid(Oid oid);
extern TwophaseSession *twophase_session(void);
extern bool twophase_is_active(int64 gtid);
extern int64 twophase_oldest_active(void);
extern void twophase_want_resolver(TwophaseDatabase *database, TimestampTz at);
extern bool twophase_is_unacknowledged(TwophaseDatabase *database, int64 gtid);
extern void twophase_expect_late(TwophaseDatabase *database, int64 us);
extern void twophase_unresolved(Oid database, int64 *in_doubt, int64 *unacknowledged,
								int64 *active, int64 *unreachable);
extern void twophase_told(TwophaseDatabase *database, int64 gtid);
extern void twophase_not_acknowledged(TwophaseDatabase *database, int64 gtid);

#endif							/* COORD_TWOPHASE_SHARED_H */
