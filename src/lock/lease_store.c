/*-------------------------------------------------------------------------
 *
 * lease_store.c
 *	  Who holds which lease: rows, and their copy in shared memory.
 *
 * A grant and a release are rows that are written in the transaction of whoever
 * calls, and become true when that commits.  How long a lease still lives is in
 * shared memory only, by a clock that nobody can set: so a renewal writes
 * nothing, and an expiry needs no writer.  After a restart or promotion the
 * copy is made from the rows, and everyone has a full time to live again.
 *
 * Rows and copy cannot differ for anybody who looks:
 *
 * 1. Who grants holds the gate of the name until his transaction ends
 *	  (lease_wait.c).  The copy is changed in the COMMIT callback, after the row
 *	  has become visible and before the gate is let go.  So whoever comes next
 *	  through the gate sees both or neither.
 * 2. A release needs no gate: it only takes away the very token it names, and
 *	  the row with it.  Two releases want the same row, and the second finds none.
 * 3. What a transaction itself has done and not committed is kept in a list in
 *	  local memory, which is laid over the copy when this process looks, follows
 *	  savepoints, and is dropped at ABORT.
 * 4. The COMMIT callback must not fail, so an entry that it will need is made,
 *	  and kept from being removed ("pending"), when the grant is noted.
 * 5. The server dies after COMMIT and before the callback: the copy dies with
 *	  it.  It is not there before it has been made from the rows, which one
 *	  process does while the others wait.
 * 6. A row that is restored or copied by a template is a lease of another
 *	  database.  Such a database is a copy, in which no lease verb works until
 *	  coord.resume(), and that makes the copy in shared memory anew.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "common/hashfn.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "base/clock.h"
#include "base/compat.h"
#include "base/installation.h"
#include "base/query.h"
#include "lock/lease.h"
#include "lock/lock.h"
#include "lock/lock_shared.h"

PG_FUNCTION_INFO_V1(coord_internal_lease_states);

/* A name; all bytes count, so it is zeroed first. */
typedef struct LeaseKey
{
	Oid			database;
	Oid			relation;		/* another with each CREATE EXTENSION */
	char		name[CHECK_NAME_MAX + 8];
} LeaseKey;

typedef struct LeaseEntry
{
	LeaseKey	key;
	int			capacity;		/* 0: not a semaphore */
	int			pending;		/* grants that are noted and not committed */
	int			nholders;
	int			size;			/* of "holders", which only a semaphore has */
	dsa_pointer holders;
	LeaseHolder only;			/* of what is not a semaphore */
} LeaseEntry;

typedef enum NoteKind
{
	NOTE_GRANT,
	NOTE_RELEASE,
	NOTE_TTL,
	NOTE_CAPACITY
} NoteKind;

/* What the open transaction has done. */
typedef struct Note
{
	NoteKind	kind;
	SubTransactionId subid;
	LeaseKey	key;
	LeaseHolder holder;			/* of a release: the token alone */
	int			capacity;
} Note;

/* In TopMemoryContext and kept, so that the callbacks allocate nothing. */
static Note *notes = NULL;
static int	nnotes = 0;
static int	notes_size = 0;

static dshash_table *leases = NULL;

static KnownDatabase *known_noted = NULL;
static bool note_forget = false;	/* lease_forget_all() */

/* This process has seen that the copy was made, of this table. */
static KnownDatabase *known_loaded = NULL;
static Oid	my_relation = InvalidOid;

static void register_callbacks(void);

/* ----------------------------------------------------------------
 *		Entries
 * ----------------------------------------------------------------
 */

/* Find the table, or make it; called from lock_shared.c. */
void
lease_attach(bool create)
{
	dshash_parameters parameters;
	MemoryContext old;

	if (leases != NULL)
		return;
	parameters = coord_hash_parameters(sizeof(LeaseKey), sizeof(LeaseEntry),
									   lock_shared->lease_tranche);
	old = MemoryContextSwitchTo(TopMemoryContext);
	if (create)
	{
		leases = dshash_create(doorbell_area(), &parameters, NULL);
		lock_shared->leases = dshash_get_hash_table_handle(leases);
	}
	else
		leases = dshash_attach(doorbell_area(), &parameters, lock_shared->leases, NULL);
	MemoryContextSwitchTo(old);
	register_callbacks();
}

/* coord_internal.lease. */
Oid
lease_relation(void)
{
	return my_relation;
}

static void
make_key(LeaseKey *key, const char *name)
{
	memset(key, 0, sizeof(LeaseKey));
	key->database = MyDatabaseId;
	key->relation = my_relation;
	strlcpy(key->name, name, sizeof(key->name));
}

static LeaseHolder *
entry_holders(LeaseEntry *entry)
{
	if (entry->size == 0)
		return &entry->only;
	return dsa_get_address(doorbell_area(), entry->holders);
}

/* Room for as many as there are and will be; may raise out of memory. */
static void
reserve_holders(LeaseEntry *entry, int count)
{
	dsa_area   *area = doorbell_area();
	dsa_pointer larger;
	int			size;

	if (count <= Max(entry->size, 1))
		return;
	size = Max(count, entry->size * 2);
	larger = dsa_allocate_extended(area, sizeof(LeaseHolder) * size, DSA_ALLOC_HUGE);
	memcpy(dsa_get_address(area, larger), entry_holders(entry),
		   sizeof(LeaseHolder) * entry->nholders);
	if (entry->size > 0)
		dsa_free(area, entry->holders);
	entry->holders = larger;
	entry->size = size;
}

static LeaseEntry *
find_or_make_entry(const LeaseKey *key)
{
	bool		found;
	LeaseEntry *entry = dshash_find_or_insert(leases, key, &found);

	if (!found)
	{
		entry->capacity = entry->pending = entry->nholders = entry->size = 0;
		entry->holders = InvalidDsaPointer;
	}
	return entry;
}

/* Let go of an entry that was looked at, and of all of it when it says nothing. */
static void
release_entry(LeaseEntry *entry)
{
	if (entry->nholders > 0 || entry->pending > 0 || entry->capacity > 0)
		dshash_release_lock(leases, entry);
	else
	{
		if (entry->size > 0)
			dsa_free(doorbell_area(), entry->holders);
		dshash_delete_entry(leases, entry);
	}
}

static void
remove_holder(LeaseEntry *entry, int64 token)
{
	LeaseHolder *holders = entry_holders(entry);

	for (int i = 0; i < entry->nholders; i++)
	{
		if (holders[i].token == token)
		{
			holders[i] = holders[--entry->nholders];
			return;
		}
	}
}

/* Where those sleep who wait inside the gate of a name.  Raises nothing. */
ConditionVariable *
lease_waiters(const char *name)
{
	uint32		hash = hash_bytes((const unsigned char *) name, strlen(name));

	return &lock_shared->waiters[hash % LOCK_WAIT_BUCKETS];
}

/* They look again.  Raises nothing. */
static void
wake_waiters(const char *name)
{
	ConditionVariableBroadcast(lease_waiters(name));
}

/* ----------------------------------------------------------------
 *		From the rows
 * ----------------------------------------------------------------
 */

static void
load_holders(void)
{
	static Statement read = {
		"SELECT name, owner, role, token, permits, ttl_us, granted_at, kind = 'leader'"
		" FROM coord_internal.lease",
		0, {0}
	};
	QueryScope	scope;
	uint64		rows;
	int64		now = clock_steady_us();

	query_begin(&scope);
	rows = query_run_latest(&read, NULL, NULL, 0);
	for (uint64 i = 0; i < rows; i++)
	{
		LeaseHolder holder = {0};
		LeaseKey	key;
		LeaseEntry *entry;
		bool		isnull;

		make_key(&key, query_text(CurrentMemoryContext, i, 1));
		strlcpy(holder.owner, query_text(CurrentMemoryContext, i, 2), sizeof(holder.owner));
		holder.role = DatumGetObjectId(query_value(i, 3, &isnull));
		holder.token = query_int8(i, 4);
		holder.permits = query_int4(i, 5);
		holder.ttl_us = query_int8(i, 6);
		holder.granted_at = query_time(i, 7);
		holder.leader = DatumGetBool(query_value(i, 8, &isnull));
		holder.deadline = now + holder.ttl_us;
		entry = find_or_make_entry(&key);
		reserve_holders(entry, entry->nholders + 1);
		entry_holders(entry)[entry->nholders++] = holder;
		dshash_release_lock(leases, entry);
	}
	query_end(&scope);
}

static void
load_semaphores(void)
{
	static Statement read = {
		"SELECT name, capacity FROM coord_internal.semaphore", 0, {0}
	};
	QueryScope	scope;
	uint64		rows;

	query_begin(&scope);
	rows = query_run_latest(&read, NULL, NULL, 0);
	for (uint64 i = 0; i < rows; i++)
	{
		LeaseKey	key;
		LeaseEntry *entry;

		make_key(&key, query_text(CurrentMemoryContext, i, 1));
		entry = find_or_make_entry(&key);
		entry->capacity = query_int4(i, 2);
		dshash_release_lock(leases, entry);
	}
	query_end(&scope);
}

/* Remove the entries of a database, whatever they say. */
void
lease_forget_entries(Oid database)
{
	dshash_seq_status status;
	LeaseEntry *entry;

	dshash_seq_init(&status, leases, true);
	while ((entry = dshash_seq_next(&status)) != NULL)
	{
		if (entry->key.database != database)
			continue;
		if (entry->size > 0)
			dsa_free(doorbell_area(), entry->holders);
		dshash_delete_current(&status);
	}
	dshash_seq_term(&status);
}

static void
forget_known(void)
{
	KnownDatabase *known = lock_known_database();

	if (known != NULL)
		known->floored = known->loaded = false;
	known_noted = known;
}

/*
 * Let the copy be made anew: the rows are others now, and once more when this
 * transaction ends.  Until then no other session makes one: the database is a
 * copy, or has no extension.
 */
void
lease_forget_all(void)
{
	forget_known();
	note_forget = true;
}

/*
 * See that this database's leases are in shared memory.  The first one who
 * comes makes the copy, under a lock that the others wait for.
 */
void
lease_open(void)
{
	KnownDatabase *known = known_loaded;
	Oid			namespace = get_namespace_oid("coord_internal", false);
	Oid			relation = get_relname_relid("lease", namespace);
	Oid			extension;

	/* Another session may see another one, or one that it has made itself. */
	if (known != NULL && known->loaded && my_relation == relation &&
		known->relation == relation && known->database == MyDatabaseId)
		return;
	known = lock_known_database();
	if (known == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("coord serves at most %d databases of a cluster",
						COORD_MAX_DATABASES)));
	known_loaded = known;
	my_relation = relation;
	if (known->loaded)
		return;
	extension = get_extension_oid("coord", false);
	LockDatabaseObject(ExtensionRelationId, extension, 1, ExclusiveLock);
	if (!known->loaded)
	{
		lease_forget_entries(MyDatabaseId);
		load_semaphores();
		load_holders();
		known->loaded = true;
	}
	UnlockDatabaseObject(ExtensionRelationId, extension, 1, ExclusiveLock);
}

/* ----------------------------------------------------------------
 *		Looking
 * ----------------------------------------------------------------
 */

/* Lay what this transaction has done over a state that has room for it. */
static void
apply_notes(const LeaseKey *key, LeaseState *state)
{
	for (int i = 0; i < nnotes; i++)
	{
		const Note *note = &notes[i];
		LeaseHolder *holder;

		if (memcmp(&note->key, key, sizeof(LeaseKey)) != 0)
			continue;
		holder = lease_find(state, note->holder.token);
		switch (note->kind)
		{
			case NOTE_GRANT:
				if (state->capacity == 0)
					state->nholders = 0;
				state->holders[state->nholders++] = note->holder;
				break;
			case NOTE_RELEASE:
				if (holder != NULL)
					*holder = state->holders[--state->nholders];
				break;
			case NOTE_TTL:
				if (holder != NULL)
				{
					holder->ttl_us = note->holder.ttl_us;
					holder->deadline = note->holder.deadline;
				}
				break;
			case NOTE_CAPACITY:
				state->capacity = note->capacity;
				break;
		}
	}
}

/* A name as the open transaction sees it; lease_open() comes before. */
void
lease_get(const char *name, LeaseState *state)
{
	LeaseKey	key;
	LeaseEntry *entry;

	memset(state, 0, sizeof(LeaseState));
	make_key(&key, name);
	entry = dshash_find(leases, &key, false);
	if (entry != NULL)
	{
		state->capacity = entry->capacity;
		state->nholders = entry->nholders;
	}

	/* Holding the lock: the size is what it was a moment ago. */
	state->holders = palloc(sizeof(LeaseHolder) * (state->nholders + nnotes + 1));
	if (entry != NULL)
	{
		memcpy(state->holders, entry_holders(entry), sizeof(LeaseHolder) * entry->nholders);
		dshash_release_lock(leases, entry);
	}
	if (nnotes > 0)
		apply_notes(&key, state);
}

LeaseHolder *
lease_find(LeaseState *state, int64 token)
{
	for (int i = 0; i < state->nholders; i++)
	{
		if (state->holders[i].token == token)
			return &state->holders[i];
	}
	return NULL;
}

bool
lease_is_live(const LeaseHolder *holder)
{
	return holder->deadline > clock_steady_us();
}

/* The noted grant of this transaction, which nobody else knows of; NULL. */
static LeaseHolder *
noted_grant(const LeaseKey *key, int64 token)
{
	for (int i = nnotes - 1; i >= 0; i--)
	{
		if (notes[i].kind == NOTE_GRANT && notes[i].holder.token == token &&
			memcmp(&notes[i].key, key, sizeof(LeaseKey)) == 0)
			return &notes[i].holder;
	}
	return NULL;
}

/*
 * Give a holder another time to live from now on; 0: as it is stored.  At once,
 * whatever becomes of the transaction.  One that has run out is not held any
 * more: under the entry's lock either this sees that, or the successor sees the
 * new deadline.  "holder" is set to what there is now.
 */
LeaseExtension
lease_extend(const char *name, int64 token, int64 ttl_us, LeaseHolder *holder)
{
	LeaseExtension result = LEASE_NOT_HELD;
	bool		sooner = false;
	LeaseHolder *mine;
	LeaseEntry *entry;
	LeaseKey	key;

	make_key(&key, name);
	mine = noted_grant(&key, token);
	if (mine != NULL)
	{
		*holder = *mine;
		if (ttl_us > mine->ttl_us)
			return LEASE_LONGER;
		mine->deadline = clock_steady_us() + (ttl_us > 0 ? ttl_us : mine->ttl_us);
		*holder = *mine;
		return LEASE_EXTENDED;
	}
	entry = dshash_find(leases, &key, true);
	if (entry == NULL)
		return LEASE_NOT_HELD;
	mine = entry_holders(entry);
	for (int i = 0; i < entry->nholders; i++, mine++)
	{
		int64		now = clock_steady_us();
		int64		before = mine->deadline;

		if (mine->token != token || mine->deadline <= now)
			continue;
		result = ttl_us > mine->ttl_us ? LEASE_LONGER : LEASE_EXTENDED;
		if (result == LEASE_LONGER)
			mine->deadline = Max(mine->deadline, now + mine->ttl_us);
		else
			mine->deadline = now + (ttl_us > 0 ? ttl_us : mine->ttl_us);
		*holder = *mine;
		sooner = mine->deadline < before;
		break;
	}
	dshash_release_lock(leases, entry);
	if (sooner)
		wake_waiters(name);
	return result;
}

/* ----------------------------------------------------------------
 *		What the open transaction does
 * ----------------------------------------------------------------
 */

static Note *
add_note(NoteKind kind, const char *name)
{
	Note	   *note;

	if (nnotes == notes_size)
	{
		int			size = notes_size ? notes_size * 2 : 16;

		if (notes == NULL)
			notes = MemoryContextAlloc(TopMemoryContext, sizeof(Note) * size);
		else
			notes = repalloc(notes, sizeof(Note) * size);
		notes_size = size;
	}
	note = &notes[nnotes];
	memset(note, 0, sizeof(Note));
	note->kind = kind;
	note->subid = GetCurrentSubTransactionId();
	make_key(&note->key, name);
	return note;
}

/* When this transaction commits, "holder" has it, or permits of it. */
void
lease_note_grant(const char *name, const LeaseHolder *holder, bool semaphore)
{
	Note	   *note = add_note(NOTE_GRANT, name);
	LeaseEntry *entry = find_or_make_entry(&note->key);

	if (semaphore)
		reserve_holders(entry, entry->nholders + entry->pending + 1);
	entry->pending++;
	dshash_release_lock(leases, entry);
	note->holder = *holder;
	nnotes++;
}

/* When this transaction commits, the holder of "token" has it no more. */
void
lease_note_release(const char *name, int64 token)
{
	Note	   *note = add_note(NOTE_RELEASE, name);

	note->holder.token = token;
	nnotes++;
}

/* When this transaction commits, the holder has the time to live and the deadline. */
void
lease_note_ttl(const char *name, const LeaseHolder *holder)
{
	Note	   *note = add_note(NOTE_TTL, name);

	note->holder = *holder;
	nnotes++;
}

/* When this transaction commits, the semaphore has a capacity; 0: it is gone. */
void
lease_note_capacity(const char *name, int capacity)
{
	Note	   *note = add_note(NOTE_CAPACITY, name);
	LeaseEntry *entry = find_or_make_entry(&note->key);

	entry->pending++;
	dshash_release_lock(leases, entry);
	note->capacity = capacity;
	nnotes++;
}

/* Has the open transaction been granted, or given back, anything? */
bool
lease_granted_here(void)
{
	return nnotes > 0;
}

static bool
note_is_pending(const Note *note)
{
	return note->kind == NOTE_GRANT || note->kind == NOTE_CAPACITY;
}

/* A note becomes true, or void.  Raises nothing. */
static void
finish_note(const Note *note, bool commit)
{
	LeaseEntry *entry = dshash_find(leases, &note->key, true);
	LeaseHolder *holder;

	if (entry == NULL)
	{
		/* The copy was made anew meanwhile: it does not have this. */
		if (commit && note_is_pending(note))
			known_loaded->loaded = false;
		return;
	}
	if (note_is_pending(note) && entry->pending > 0)
		entry->pending--;
	if (commit)
	{
		switch (note->kind)
		{
			case NOTE_GRANT:
				if (entry->capacity == 0)
					entry->nholders = 0;
				remove_holder(entry, note->holder.token);	/* if it was loaded just now */
				if (entry->nholders < Max(entry->size, 1))
					entry_holders(entry)[entry->nholders++] = note->holder;
				else
					known_loaded->loaded = false;
				break;
			case NOTE_RELEASE:
				remove_holder(entry, note->holder.token);
				break;
			case NOTE_TTL:
				holder = entry_holders(entry);
				for (int i = 0; i < entry->nholders; i++, holder++)
				{
					if (holder->token != note->holder.token)
						continue;
					holder->ttl_us = note->holder.ttl_us;
					holder->deadline = note->holder.deadline;
				}
				break;
			case NOTE_CAPACITY:
				entry->capacity = note->capacity;
				break;
		}
	}
	release_entry(entry);
	if (!commit || note->kind == NOTE_RELEASE || note->kind == NOTE_CAPACITY)
		wake_waiters(note->key.name);
}

/*
 * At COMMIT this runs after the rows have become visible and before any lock is
 * released.
 */
static void
xact_callback(XactEvent event, void *arg)
{
	if (note_forget && (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT))
	{
		if (known_noted != NULL)
			known_noted->floored = known_noted->loaded = false;
		note_forget = false;
	}
	if (nnotes == 0)
		return;
	switch (event)
	{
		case XACT_EVENT_PRE_PREPARE:
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("cannot PREPARE a transaction that has acquired, released or changed a lease"),
					 errhint("A transaction that only called coord.fence_check() can be prepared.")));
			break;
		case XACT_EVENT_PRE_COMMIT:
			/* Map now what the callback at COMMIT will look at. */
			for (int i = 0; i < nnotes; i++)
			{
				LeaseEntry *entry = dshash_find(leases, &notes[i].key, false);

				if (entry == NULL)
					continue;
				(void) entry_holders(entry);
				dshash_release_lock(leases, entry);
			}
			break;
		case XACT_EVENT_COMMIT:
		case XACT_EVENT_ABORT:
			for (int i = 0; i < nnotes; i++)
				finish_note(&notes[i], event == XACT_EVENT_COMMIT);
			nnotes = 0;
			break;
		default:
			break;
	}
}

static void
subxact_callback(SubXactEvent event, SubTransactionId mine, SubTransactionId parent,
				 void *arg)
{
	int			kept = 0;

	if (event != SUBXACT_EVENT_COMMIT_SUB && event != SUBXACT_EVENT_ABORT_SUB)
		return;
	for (int i = 0; i < nnotes; i++)
	{
		if (notes[i].subid == mine)
		{
			if (event == SUBXACT_EVENT_ABORT_SUB)
			{
				if (notes[i].kind == NOTE_GRANT)
					fence_forget(notes[i].holder.token);
				finish_note(&notes[i], false);
				continue;
			}
			notes[i].subid = parent;
		}
		if (kept != i)
			notes[kept] = notes[i];
		kept++;
	}
	nnotes = kept;
}

static void
register_callbacks(void)
{
	RegisterXactCallback(xact_callback, NULL);
	RegisterSubXactCallback(subxact_callback, NULL);
}

/* ----------------------------------------------------------------
 *		For housekeeping and views
 * ----------------------------------------------------------------
 */

#define SWEEP 1000

/* A lease that has run out. */
typedef struct Expired
{
	char		name[CHECK_NAME_MAX + 1];
	int64		token;
	int64		ttl_us;
} Expired;

/*
 * Those of this database, at most SWEEP; returns how many.  "next" is when the
 * next of the others runs out, by the steady clock; PG_INT64_MAX: there is none.
 */
static int
find_expired(Expired *expired, int64 *next)
{
	dshash_seq_status status;
	LeaseEntry *entry;
	int64		now = clock_steady_us();
	int			count = 0;

	*next = PG_INT64_MAX;
	dshash_seq_init(&status, leases, false);
	while (count < SWEEP && (entry = dshash_seq_next(&status)) != NULL)
	{
		LeaseHolder *holders;

		if (entry->key.database != MyDatabaseId ||
			entry->key.relation != my_relation)
			continue;
		holders = entry_holders(entry);
		for (int i = 0; i < entry->nholders && count < SWEEP; i++)
		{
			if (holders[i].deadline > now)
			{
				*next = Min(*next, holders[i].deadline);
				continue;
			}
			expired[count].ttl_us = holders[i].ttl_us;
			strlcpy(expired[count].name, entry->key.name, sizeof(expired[count].name));
			expired[count++].token = holders[i].token;
		}
	}
	dshash_seq_term(&status);
	return count;
}

/*
 * Delete their rows, and note what that frees.  Not those that somebody has
 * locked: he is about to release them, or to make them last longer.
 */
static void
free_expired(const Expired *expired, int count)
{
	static Statement delete = {
		"DELETE FROM coord_internal.lease WHERE ctid = ANY (ARRAY(SELECT l.ctid"
		"  FROM unnest($1, $2, $3) AS u(name, token, ttl_us) JOIN coord_internal.lease l"
		"  ON l.name = u.name AND l.token = u.token AND l.ttl_us = u.ttl_us"
		"  FOR UPDATE OF l SKIP LOCKED)) RETURNING name, token",
		3, {TEXTARRAYOID, INT8ARRAYOID, INT8ARRAYOID}
	};
	Datum	   *names = palloc(sizeof(Datum) * count);
	int64	   *tokens = palloc(sizeof(int64) * count);
	int64	   *ttls = palloc(sizeof(int64) * count);
	QueryScope	scope;
	Datum		values[3];
	uint64		rows;

	for (int i = 0; i < count; i++)
	{
		names[i] = CStringGetTextDatum(expired[i].name);
		tokens[i] = expired[i].token;
		ttls[i] = expired[i].ttl_us;
	}
	query_begin(&scope);
	values[0] = PointerGetDatum(construct_array(names, count, TEXTOID, -1, false, TYPALIGN_INT));
	values[1] = query_int8_array(tokens, count);
	values[2] = query_int8_array(ttls, count);
	rows = query_run(&delete, values, NULL, 0);
	for (uint64 i = 0; i < rows; i++)
		lease_note_release(query_text(CurrentMemoryContext, i, 1), query_int8(i, 2));
	query_end(&scope);
}

/* How long after its end at the latest a lease's row goes, where workers come. */
#define SWEEP_AFTER_US (60 * USECS_PER_SEC)

/*
 * When this transaction commits, a worker shall come and sweep some time after
 * "deadline", lest the row is taken for a lease after the next restart.
 */
void
lease_sweep_later(TimestampTz deadline)
{
	doorbell_sweep_at_commit(deadline + SWEEP_AFTER_US);
}

/*
 * Leases that have run out become free: their rows go, and what is in shared
 * memory.  One that was granted to somebody else meanwhile has another token.
 * For workers, outside a transaction.
 */
void
lease_housekeeping(void)
{
	StartTransactionCommand();
	if (installation_lock(AccessShareLock) && !installation_is_copy())
	{
		Expired    *expired = palloc(sizeof(Expired) * SWEEP);
		int64		next;
		int			count;

		PushActiveSnapshot(GetTransactionSnapshot());
		lease_open();
		count = find_expired(expired, &next);
		if (count > 0)
			free_expired(expired, count);
		if (next != PG_INT64_MAX || count > 0)
			lease_sweep_later(clock_now() + Max(next == PG_INT64_MAX ? 0 : next - clock_steady_us(), 0));
		PopActiveSnapshot();
	}
	CommitTransactionCommand();
}

static void
put_state(ReturnSetInfo *rsinfo, const LeaseKey *key, int capacity, const LeaseHolder *holder)
{
	int64		now = clock_steady_us();
	Datum		values[11];
	bool		nulls[11] = {false};
	Interval   *ttl = palloc0(sizeof(Interval));

	ttl->time = holder->ttl_us;
	values[0] = CStringGetTextDatum(key->name);
	values[1] = CStringGetTextDatum(holder->owner);
	values[2] = ObjectIdGetDatum(holder->role);
	values[3] = Int64GetDatum(holder->token);
	values[4] = TimestampTzGetDatum(holder->granted_at);
	values[5] = TimestampTzGetDatum(clock_now() + holder->deadline - now);
	values[6] = IntervalPGetDatum(ttl);
	values[7] = Int32GetDatum(holder->permits);
	values[8] = Int32GetDatum(capacity > 0 ? capacity : 1);
	values[9] = BoolGetDatum(holder->leader);
	values[10] = BoolGetDatum(holder->deadline > now);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

/* Who holds which lease of this database. */
Datum
coord_internal_lease_states(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	dshash_seq_status status;
	LeaseEntry *entry;

	InitMaterializedSRF(fcinfo, 0);
	if (RecoveryInProgress() || installation_is_copy())
		return (Datum) 0;
	lease_open();
	dshash_seq_init(&status, leases, false);
	while ((entry = dshash_seq_next(&status)) != NULL)
	{
		LeaseHolder *holders = entry_holders(entry);

		if (entry->key.database != MyDatabaseId ||
			entry->key.relation != my_relation)
			continue;
		for (int i = 0; i < entry->nholders; i++)
			put_state(rsinfo, &entry->key, entry->capacity, &holders[i]);
	}
	dshash_seq_term(&status);
	return (Datum) 0;
}
