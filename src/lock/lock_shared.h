/*-------------------------------------------------------------------------
 *
 * lock_shared.h
 *	  Shared memory of locks and leases; private to src/lock.
 *
 * See lock_shared.c.
 *
 *-------------------------------------------------------------------------
 */
#ifndef COORD_LOCK_SHARED_H
#define COORD_LOCK_SHARED_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "port/atomics.h"
#include "storage/condition_variable.h"
#include "storage/lwlock.h"
#include "utils/dsa.h"

#include "base/check.h"
#include "base/doorbell.h"
#include "lock/lock_key.h"

/* One lock that a process holds, or what it waits for; for the views. */
typedef struct HeldLock
{
	LockKey		key;
	LockKind	kind;
	bool		session;
	bool		transaction;
	bool		waiting;
	Oid			role;
	int64		token;
	TimestampTz since;
	char		name[CHECK_NAME_MAX + 1];
} HeldLock;

/* All of one process; only that process writes, with the lock held. */
typedef struct HeldBlock
{
	LWLock		lock;
	int			pid;			/* 0: nobody's */
	Oid			database;
	int			count;
	int			size;
	dsa_pointer locks;			/* HeldLock[size] */
} HeldBlock;

/* A database whose stored tokens the counter is known to be beyond. */
typedef struct KnownDatabase
{
	Oid			database;
	Oid			relation;		/* coord_internal.lease, another with each CREATE EXTENSION */
	bool		floored;		/* tokens */
	pg_atomic_uint64 token_limit;	/* up to here its next start is sure to be beyond */
	bool		loaded;			/* leases */
} KnownDatabase;

#define LOCK_WAIT_BUCKETS 64

typedef struct LockShared
{
	LWLock		lock;			/* protects what is not said to be otherwise */
	int			tranche;
	int			lease_tranche;
	bool		made;

	pg_atomic_uint64 token;		/* the last that was given out; 0: none yet */
	pg_atomic_uint32 nheld;		/* locks of coord.lock(), for the quota */

	int			nblocks;
	dsa_pointer blocks;			/* HeldBlock[nblocks], by process number */
	uint64		leases;			/* dshash_table_handle */
	KnownDatabase known[COORD_MAX_DATABASES];
	ConditionVariable waiters[LOCK_WAIT_BUCKETS];	/* see lease_waiters() */
} LockShared;

/* Valid after lock_attach(). */
extern LockShared *lock_shared;
extern HeldBlock *lock_blocks;

extern void lock_attach(void);
extern KnownDatabase *lock_known_database(void);

/* lock_token.c */

/* lease_store.c */
extern void lease_attach(bool create);
extern ConditionVariable *lease_waiters(const char *name);
extern void lease_forget_entries(Oid database);

#endif							/* COORD_LOCK_SHARED_H */
