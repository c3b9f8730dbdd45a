/*-------------------------------------------------------------------------
 *
 * lock_shared.c
 *	  Shared memory of locks and leases.
 *
 * A small struct, from the main segment also without preload; what grows is in
 * the DSA area that all of coord shares.  Tables and the lock manager are the
 * truth: after a crash all of this is made anew, tokens from the clock and from
 * what is stored (lock_token.c), leases from their rows (lease_store.c).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "miscadmin.h"
#include "storage/proc.h"
#include "storage/shmem.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

#include "base/compat.h"
#include "lock/lock.h"
#include "lock/lock_shared.h"

#define SHMEM_NAME "coord 1.0 locks"

LockShared *lock_shared = NULL;
HeldBlock  *lock_blocks = NULL;

Size
lock_shmem_size(void)
{
	return MAXALIGN(sizeof(LockShared));
}

/* Make what is in the area, or find that another process was faster. */
static void
make_area(dsa_area *area)
{
	int			count = ProcGlobal->allProcCount;
	dsa_pointer pointer = dsa_allocate0(area, sizeof(HeldBlock) * count);
	HeldBlock  *blocks = dsa_get_address(area, pointer);

	for (int i = 0; i < count; i++)
	{
		LWLockInitialize(&blocks[i].lock, lock_shared->tranche);
		blocks[i].locks = InvalidDsaPointer;
	}
	LWLockAcquire(&lock_shared->lock, LW_EXCLUSIVE);
	if (!lock_shared->made)
	{
		lock_shared->blocks = pointer;
		lock_shared->nblocks = count;
		lease_attach(true);
		lock_shared->made = true;
		pointer = InvalidDsaPointer;
	}
	LWLockRelease(&lock_shared->lock);
	if (DsaPointerIsValid(pointer))
		dsa_free(area, pointer);
}

/* Find or make the shared structs.  Cheap after the first call. */
void
lock_attach(void)
{
	dsa_area   *area;
	bool		found;

	if (lock_blocks != NULL)
		return;
	doorbell_attach_queue();
	area = doorbell_area();
	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	lock_shared = ShmemInitStruct(SHMEM_NAME, lock_shmem_size(), &found);
	if (!found)
	{
		memset(lock_shared, 0, sizeof(LockShared));
		lock_shared->tranche = coord_new_tranche("coord_lock");
		lock_shared->lease_tranche = coord_new_tranche("coord_lease");
		LWLockInitialize(&lock_shared->lock, lock_shared->tranche);
		pg_atomic_init_u64(&lock_shared->token, 0);
		pg_atomic_init_u32(&lock_shared->nheld, 0);
		for (int i = 0; i < COORD_MAX_DATABASES; i++)
			pg_atomic_init_u64(&lock_shared->known[i].token_limit, 0);
		for (int i = 0; i < LOCK_WAIT_BUCKETS; i++)
			ConditionVariableInit(&lock_shared->waiters[i]);
	}
	LWLockRelease(AddinShmemInitLock);
	coord_register_tranche(lock_shared->tranche, "coord_lock");
	coord_register_tranche(lock_shared->lease_tranche, "coord_lease");
	if (!lock_shared->made)
		make_area(area);
	lease_attach(false);
	lock_blocks = dsa_get_address(area, lock_shared->blocks);
}

/* Forget one database that is no more; false: there is none. */
static bool
forget_dropped_database(void)
{
	for (int i = 0; i < COORD_MAX_DATABASES; i++)
	{
		Oid			database = lock_shared->known[i].database;

		if (!OidIsValid(database) || SearchSysCacheExists1(DATABASEOID, ObjectIdGetDatum(database)))
			continue;
		lease_forget_entries(database);
		LWLockAcquire(&lock_shared->lock, LW_EXCLUSIVE);
		if (lock_shared->known[i].database == database)
			lock_shared->known[i].database = InvalidOid;
		LWLockRelease(&lock_shared->lock);
		return true;
	}
	return false;
}

/*
 * What is known of this database's tables.  NULL when they are not there or
 * there are too many databases.
 */
KnownDatabase *
lock_known_database(void)
{
	Oid			namespace = get_namespace_oid("coord_internal", true);
	Oid			relation = OidIsValid(namespace) ? get_relname_relid("lease", namespace) : InvalidOid;
	KnownDatabase *result = NULL;

	if (!OidIsValid(relation))
		return NULL;
	lock_attach();
	LWLockAcquire(&lock_shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < COORD_MAX_DATABASES; i++)
	{
		KnownDatabase *known = &lock_shared->known[i];

		if (known->database == MyDatabaseId)
		{
			result = known;
			break;
		}
		if (result == NULL && !OidIsValid(known->database))
			result = known;
	}
	if (result != NULL && (result->database != MyDatabaseId || result->relation != relation))
	{
		result->database = MyDatabaseId;
		result->relation = relation;
		result->floored = result->loaded = false;
		pg_atomic_write_u64(&result->token_limit, 0);
	}
	LWLockRelease(&lock_shared->lock);
	return result == NULL && forget_dropped_database() ? lock_known_database() : result;
}
