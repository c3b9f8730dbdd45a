/*-------------------------------------------------------------------------
 *
 * lock_held.c
 *	  What this session holds.
 *
 * The lock manager knows which tags a session holds, but no names, and does not
 * tell whether it is for the session or for the transaction.  So it is counted
 * here by name, in local memory, and copied for the views to a block in shared
 * memory that only its process writes.  The views join it with pg_locks: what
 * the lock manager does not know is not shown.
 *
 * What the server releases by itself is forgotten in the same moment:
 *
 * 1. At the end of a transaction, what it held.  A prepared one keeps its
 *	  locks, which from then on are nobody's in particular: pg_locks shows them
 *	  without a process, and coord.locks without a name.
 * 2. At ROLLBACK TO SAVEPOINT, what was first taken behind the savepoint.  A
 *	  hold remembers the outermost subtransaction that has it; a later hold by an
 *	  inner one adds nothing that outlives it.
 * 3. pg_advisory_unlock_all() and DISCARD ALL release all that the session
 *	  holds.  (No other function reaches locks of this class.)  So a session that
 *	  has ever taken a lock for itself has a lock of its own besides, which nobody
 *	  else wants: if that is gone, all are.  It is looked for at the end of each
 *	  transaction and before each use.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/twophase.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/proc.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "base/compat.h"
#include "base/doorbell.h"
#include "base/guc.h"
#include "lock/lock_held.h"
#include "lock/lock_shared.h"

PG_FUNCTION_INFO_V1(coord_internal_held_locks);

/* This session's holds, in TopMemoryContext. */
static HTAB *holds = NULL;
static int	nsession = 0;		/* of them, of the session */
static int	ntransaction = 0;	/* of them, of the open transaction */

/* Gates and fences of the open transaction, by subtransaction; TopMemoryContext. */
typedef struct Counted
{
	SubTransactionId subid;
	int			count;
} Counted;

static Counted *counted = NULL;
static int	ncounted = 0;
static int	counted_size = 0;
static bool session_lock = false;	/* the lock that tells; see the file header */

/* This process's block. */
static HeldBlock *my_block = NULL;

/* The entry of what this process waits for; -1: for nothing. */
static int	waiting_index = -1;

#define FIRST_SIZE 16

/* ----------------------------------------------------------------
 *		The block in shared memory
 * ----------------------------------------------------------------
 */

/* None of the transaction's gates and fences is held any more. */
static void
forget_counted(void)
{
	for (int i = 0; i < ncounted; i++)
		pg_atomic_sub_fetch_u32(&lock_shared->nheld, counted[i].count);
	ncounted = 0;
}

/*
 * The process ends.  An open transaction is aborted only after this, and its
 * callbacks then find nothing to do.
 */
static void
block_exit(int code, Datum arg)
{
	LWLockAcquire(&my_block->lock, LW_EXCLUSIVE);
	my_block->pid = 0;
	my_block->count = 0;
	LWLockRelease(&my_block->lock);
	if (holds != NULL)
		pg_atomic_sub_fetch_u32(&lock_shared->nheld, hash_get_num_entries(holds));
	forget_counted();
	holds = NULL;
	nsession = ntransaction = 0;
	session_lock = false;
	waiting_index = -1;
}

static HeldLock *
block_locks(void)
{
	return dsa_get_address(doorbell_area(), my_block->locks);
}

/* See that there is room for two more entries: a lock, and what is waited for. */
static void
reserve_entries(void)
{
	dsa_area   *area = doorbell_area();
	dsa_pointer larger;
	dsa_pointer old;
	int			size;

	if (my_block == NULL)
	{
		my_block = &lock_blocks[coord_my_proc_number()];
		LWLockAcquire(&my_block->lock, LW_EXCLUSIVE);
		my_block->pid = MyProcPid;
		my_block->database = MyDatabaseId;
		my_block->count = 0;
		LWLockRelease(&my_block->lock);
		before_shmem_exit(block_exit, (Datum) 0);
	}
	if (my_block->count + 2 <= my_block->size)
	{
		(void) block_locks();	/* map it now */
		return;
	}
	size = Max(FIRST_SIZE, my_block->size * 2);
	larger = dsa_allocate_extended(area, sizeof(HeldLock) * size, DSA_ALLOC_HUGE);
	old = my_block->locks;
	if (my_block->count > 0)
		memcpy(dsa_get_address(area, larger), block_locks(), sizeof(HeldLock) * my_block->count);
	LWLockAcquire(&my_block->lock, LW_EXCLUSIVE);
	my_block->locks = larger;
	my_block->size = size;
	LWLockRelease(&my_block->lock);
	if (DsaPointerIsValid(old))
		dsa_free(area, old);
}

/* Write a new entry; there is room. */
static int
add_entry(const HeldLock *lock, const char *name)
{
	HeldLock   *entry = &block_locks()[my_block->count];

	LWLockAcquire(&my_block->lock, LW_EXCLUSIVE);
	memcpy(entry, lock, offsetof(HeldLock, name));
	strlcpy(entry->name, name, sizeof(entry->name));
	my_block->count++;
	LWLockRelease(&my_block->lock);
	return my_block->count - 1;
}

/* Take an entry away; the last one takes its place. */
static void
remove_entry(int index)
{
	HeldLock   *locks = block_locks();
	int			last = my_block->count - 1;

	LWLockAcquire(&my_block->lock, LW_EXCLUSIVE);
	if (index != last)
		locks[index] = locks[last];
	my_block->count--;
	LWLockRelease(&my_block->lock);
	if (index == last)
		return;
	if (waiting_index == last)
		waiting_index = index;
	else
	{
		Held	   *moved = held_find(&locks[index].key, locks[index].kind);

		if (moved != NULL)
			moved->index = index;
	}
}

/* Say in shared memory how a hold is now. */
static void
update_entry(const Held *held)
{
	HeldLock   *entry = &block_locks()[held->index];

	LWLockAcquire(&my_block->lock, LW_EXCLUSIVE);
	entry->session = held->session > 0;
	entry->transaction = held->transaction;
	LWLockRelease(&my_block->lock);
}

/* ----------------------------------------------------------------
 *		Ends of transactions
 * ----------------------------------------------------------------
 */

/* A hold by the transaction, or one that never came to be, is over. */
static void
transaction_over(Held *held)
{
	if (held->transaction)
	{
		held->transaction = false;
		ntransaction--;
	}
	if (held->session > 0)
		update_entry(held);
	else
		held_forget(held);
}

static void
session_tag(LOCKTAG *tag)
{
	SET_LOCKTAG_ADVISORY(*tag, MyDatabaseId, 0, (uint32) MyProcPid, SPACE_SESSION);
}

/* None of what the session held is held any more. */
static void
forget_session(void)
{
	HASH_SEQ_STATUS status;
	Held	   *held;

	session_lock = false;
	hash_seq_init(&status, holds);
	while ((held = hash_seq_search(&status)) != NULL)
	{
		if (held->session == 0)
			continue;
		held->session = 0;
		nsession--;
		if (held->transaction)
			update_entry(held);
		else
			held_forget(held);
	}
}

/* See whether the session still holds what it did; see the file header. */
void
held_check_session(void)
{
	LOCKTAG		tag;

	if (!session_lock)
		return;
	session_tag(&tag);
	if (!held_by_me(&tag, ExclusiveLock))
		forget_session();
}

static void
xact_callback(XactEvent event, void *arg)
{
	HASH_SEQ_STATUS status;
	Held	   *held;

	if (event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT &&
		event != XACT_EVENT_PREPARE)
		return;
	held_waits_no_more();
	forget_counted();
	if (ntransaction > 0)
	{
		hash_seq_init(&status, holds);
		while ((held = hash_seq_search(&status)) != NULL)
		{
			if (held->transaction)
				transaction_over(held);
		}
	}
	held_check_session();
}

static void
subxact_callback(SubXactEvent event, SubTransactionId mine, SubTransactionId parent,
				 void *arg)
{
	HASH_SEQ_STATUS status;
	Held	   *held;

	if (event == SUBXACT_EVENT_ABORT_SUB)
		held_waits_no_more();
	for (int i = 0; i < ncounted; i++)
	{
		if (counted[i].subid != mine)
			continue;
		if (event == SUBXACT_EVENT_COMMIT_SUB)
			counted[i].subid = parent;	/* which may then have several places */
		else if (event == SUBXACT_EVENT_ABORT_SUB)
		{
			pg_atomic_sub_fetch_u32(&lock_shared->nheld, counted[i].count);
			counted[i].count = 0;
		}
	}
	while (ncounted > 0 && counted[ncounted - 1].count == 0)
		ncounted--;
	if (ntransaction == 0 || (event != SUBXACT_EVENT_COMMIT_SUB && event != SUBXACT_EVENT_ABORT_SUB))
		return;
	hash_seq_init(&status, holds);
	while ((held = hash_seq_search(&status)) != NULL)
	{
		if (!held->transaction || held->subid != mine)
			continue;
		if (event == SUBXACT_EVENT_COMMIT_SUB)
			held->subid = parent;
		else
			transaction_over(held);
	}
}

/* ----------------------------------------------------------------
 *		Holds
 * ----------------------------------------------------------------
 */

static HeldKey
held_key(const LockKey *key, LockKind kind)
{
	HeldKey		result;

	memset(&result, 0, sizeof(result));
	result.hash = key->hash;
	result.more = key->more;
	result.kind = (uint8) kind;
	return result;
}

/* What this session has of a name in a mode; NULL: nothing. */
Held *
held_find(const LockKey *key, LockKind kind)
{
	HeldKey		lookup = held_key(key, kind);

	return holds == NULL ? NULL : hash_search(holds, &lookup, HASH_FIND, NULL);
}

/* Most locks of coord's at a time, in the cluster. */
static uint32
quota(void)
{
	if (guc_max_locks >= 0)
		return guc_max_locks;
	return (uint32) ((int64) max_locks_per_xact * (MaxBackends + max_prepared_xacts) / 2);
}

/* 53400 when there is no room for another lock. */
static void
check_quota(const char *name)
{
	if (pg_atomic_read_u32(&lock_shared->nheld) >= quota())
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("too many locks: \"%s\" was not taken", name),
				 errdetail("coord.max_locks allows for %u at a time in this cluster.", quota()),
				 errhint("Lock what contains them in one mode instead of each by itself, or raise coord.max_locks and max_locks_per_transaction.")));
}

/* Callbacks, and what they need; cheap after the first call. */
static void
prepare(void)
{
	HASHCTL		ctl = {0};

	if (holds != NULL)
		return;
	lock_attach();
	ctl.keysize = sizeof(HeldKey);
	ctl.entrysize = sizeof(Held);
	ctl.hcxt = TopMemoryContext;
	holds = hash_create("coord locks held", 64, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	RegisterXactCallback(xact_callback, NULL);
	RegisterSubXactCallback(subxact_callback, NULL);
}

/* Those of a subtransaction; a new place at the end when it has none. */
static Counted *
counted_of(SubTransactionId subid)
{
	for (int i = ncounted - 1; i >= 0; i--)
	{
		if (counted[i].subid == subid)
			return &counted[i];
	}
	if (ncounted == counted_size)
	{
		int			size = Max(16, counted_size * 2);

		if (counted == NULL)
			counted = MemoryContextAlloc(TopMemoryContext, sizeof(Counted) * size);
		else
			counted = repalloc(counted, sizeof(Counted) * size);
		counted_size = size;
	}
	counted[ncounted].subid = subid;
	counted[ncounted].count = 0;
	return &counted[ncounted++];
}

/*
 * A gate or fence of this name is about to be taken by the open transaction, or
 * by the open subtransaction.  53400 when there are too many.
 */
void
held_count_one(const char *name, bool to_the_end)
{
	Counted    *mine;

	prepare();
	reserve_entries();			/* whose exit callback gives it back */
	check_quota(name);
	mine = counted_of(to_the_end ? TopSubTransactionId : GetCurrentSubTransactionId());
	mine->count++;
	pg_atomic_add_fetch_u32(&lock_shared->nheld, 1);
}

/* It was not taken after all, or given back. */
void
held_count_one_less(bool to_the_end)
{
	counted_of(to_the_end ? TopSubTransactionId : GetCurrentSubTransactionId())->count--;
	pg_atomic_sub_fetch_u32(&lock_shared->nheld, 1);
}

/*
 * A place for a hold that is wanted, so that nothing can fail once it is
 * granted.  53400 when there are too many.
 */
Held *
held_reserve(const char *name, const LockKey *key, LockKind kind)
{
	HeldKey		lookup = held_key(key, kind);
	Held	   *held;
	bool		found;

	prepare();
	reserve_entries();
	check_quota(name);
	held = hash_search(holds, &lookup, HASH_ENTER, &found);
	if (!found)
	{
		held->session = 0;
		held->transaction = false;
		held->token = 0;
		held->index = -1;
		pg_atomic_add_fetch_u32(&lock_shared->nheld, 1);
	}
	return held;
}

/* A hold was granted, once more or for the first time.  Raises nothing. */
void
held_granted(Held *held, const char *name, const LockKey *key, bool session, int64 token)
{
	if (session)
		nsession += held->session++ == 0;
	else if (!held->transaction)
	{
		held->transaction = true;
		held->subid = GetCurrentSubTransactionId();
		ntransaction++;
	}
	if (held->index >= 0)
		update_entry(held);
	else
	{
		HeldLock	entry = {0};

		held->token = token;
		entry.key = *key;
		entry.kind = held->key.kind;
		entry.session = held->session > 0;
		entry.transaction = held->transaction;
		entry.role = GetUserId();
		entry.token = token;
		entry.since = GetCurrentTimestamp();
		held->index = add_entry(&entry, name);
	}
}

/*
 * The session is about to take a lock for itself: see that the lock is there that
 * tells whether it still has it.
 */
void
held_mark_session(void)
{
	LOCKTAG		tag;

	prepare();
	held_check_session();
	if (session_lock)
		return;
	session_tag(&tag);
	(void) LockAcquire(&tag, ExclusiveLock, true, true);
	session_lock = true;
}

/* The transaction holds it from now on until its end.  Raises nothing. */
void
held_to_the_end(Held *held)
{
	if (!held->transaction)
		ntransaction++;
	held->transaction = true;
	held->subid = TopSubTransactionId;
	update_entry(held);
}

/* The session has given back one of its holds.  Raises nothing. */
void
held_released(Held *held)
{
	if (--held->session > 0)
		return;
	nsession--;
	if (held->transaction)
		update_entry(held);
	else
		held_forget(held);
}

/* Nothing is held of it.  Raises nothing. */
void
held_forget(Held *held)
{
	HeldKey		key = held->key;

	if (held->index >= 0)
		remove_entry(held->index);
	hash_search(holds, &key, HASH_REMOVE, NULL);
	pg_atomic_sub_fetch_u32(&lock_shared->nheld, 1);
}

/* From now on this process waits for something. */
void
held_waits(const char *name, const LockKey *key, LockKind kind)
{
	HeldLock	entry = {0};

	held_waits_no_more();
	lock_attach();
	reserve_entries();
	entry.key = *key;
	entry.kind = kind;
	entry.waiting = true;
	entry.role = GetUserId();
	entry.since = GetCurrentTimestamp();
	waiting_index = add_entry(&entry, name);
}

void
held_waits_no_more(void)
{
	int			index = waiting_index;

	waiting_index = -1;
	if (index >= 0)
		remove_entry(index);
}

/* Does this session hold the tag, in this mode or another that is as strong? */
bool
held_by_me(const LOCKTAG *tag, LOCKMODE mode)
{
	return coord_lock_held_by_me(tag, mode);
}

/* ----------------------------------------------------------------
 *		For the views
 * ----------------------------------------------------------------
 */

static Datum
text_datum(const char *text)
{
	return CStringGetTextDatum(text);
}

static void
put_lock(ReturnSetInfo *rsinfo, int pid, const HeldLock *lock)
{
	Datum		values[12];
	bool		nulls[12] = {false};
	LOCKTAG		tag;

	lock_tag(&tag, &lock->key, lock->kind == KIND_LEASE ? SPACE_GATE : SPACE_LOCK);
	values[0] = Int32GetDatum(pid);
	values[1] = ObjectIdGetDatum(tag.locktag_field2);
	values[2] = ObjectIdGetDatum(tag.locktag_field3);
	values[3] = Int16GetDatum((int16) tag.locktag_field4);
	values[4] = text_datum(GetLockmodeName(DEFAULT_LOCKMETHOD, lock->kind == KIND_LEASE ?
										   ExclusiveLock : lock_kind_modes[lock->kind]));
	values[5] = text_datum(lock->name);
	values[6] = text_datum(lock_kind_name(lock->kind));
	values[7] = text_datum(lock->session ? "session" : "transaction");
	nulls[7] = lock->waiting;
	values[8] = ObjectIdGetDatum(lock->role);
	values[9] = Int64GetDatum(lock->token);
	nulls[9] = lock->waiting;
	values[10] = TimestampTzGetDatum(lock->since);
	values[11] = BoolGetDatum(lock->waiting);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

/* What the sessions of this database hold and wait for. */
Datum
coord_internal_held_locks(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	dsa_area   *area;

	InitMaterializedSRF(fcinfo, 0);
	lock_attach();
	held_check_session();
	area = doorbell_area();
	for (int i = 0; i < lock_shared->nblocks; i++)
	{
		HeldBlock  *block = &lock_blocks[i];
		HeldLock   *copy = NULL;
		int			count = 0;
		int			pid;

		if (block->pid == 0 || block->database != MyDatabaseId || block->count == 0)
			continue;
		LWLockAcquire(&block->lock, LW_SHARED);
		pid = block->pid;
		if (pid != 0 && block->database == MyDatabaseId && block->count > 0)
		{
			count = block->count;
			copy = palloc_extended(sizeof(HeldLock) * count, MCXT_ALLOC_HUGE);
			memcpy(copy, dsa_get_address(area, block->locks), sizeof(HeldLock) * count);
		}
		LWLockRelease(&block->lock);
		for (int j = 0; j < count; j++)
			put_lock(rsinfo, pid, &copy[j]);
	}
	return (Datum) 0;
}
