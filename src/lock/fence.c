/*-------------------------------------------------------------------------
 *
 * fence.c
 *	  coord.fence_check() and coord.fence_guard(): a lease that is enforced.
 *
 * A transaction that calls fence_check() takes the name's fence shared, and looks
 * whether its token is the one that holds the lease.  Who is granted the lease
 * next takes the fence exclusively first.  So:
 *
 * 1. The check comes before the grant: the grant waits until the transaction has
 *	  ended, whatever becomes of the holder's time to live meanwhile.
 * 2. The grant comes before the check: the check waits for the fence until the
 *	  grant is committed, and then sees another token, since grants are published
 *	  before locks are released.
 *
 * The fence is held by the top transaction, so that ROLLBACK TO SAVEPOINT, which
 * undoes no write that was made before, does not drop it either.  What is looked
 * at is shared memory, never a snapshot, so the isolation level does not matter.
 *
 * The token of an exclusive lock can be checked, too, in the session that holds
 * it: the transaction then takes the very lock once more, and keeps it however the
 * session loses it; and it takes the fence exclusively, so that it and those who
 * come with a lease of the same name exclude each other.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/resowner.h"
#include "utils/syscache.h"

#include "base/check.h"
#include "base/compat.h"
#include "base/debug_point.h"
#include "base/errors.h"
#include "base/installation.h"
#include "base/query.h"
#include "lock/lease.h"
#include "lock/lock_held.h"

#define TRIGGER_NAME "coord_fence_guard"
#define TRUNCATE_TRIGGER_NAME "coord_fence_guard_truncate"

PG_FUNCTION_INFO_V1(coord_fence_check);
PG_FUNCTION_INFO_V1(coord_fence_guard);
PG_FUNCTION_INFO_V1(coord_fence_unguard);
PG_FUNCTION_INFO_V1(coord_internal_fence_guard);

typedef struct Passed
{
	LockKey		key;
	int64		token;
} Passed;

/* Names whose fence the open transaction has passed; in TopMemoryContext. */
static Passed *passed = NULL;
static int	npassed = 0;
static int	passed_size = 0;

static void
xact_callback(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT || event == XACT_EVENT_PREPARE)
		npassed = 0;
}

static bool
has_passed(const LockKey *key)
{
	for (int i = npassed - 1; i >= 0; i--)
	{
		if (passed[i].key.hash == key->hash && passed[i].key.more == key->more)
			return true;
	}
	return false;
}

/*
 * The grant of a token was undone with a savepoint: what passed by it has not
 * passed.  Raises nothing.
 */
void
fence_forget(int64 token)
{
	for (int i = npassed - 1; i >= 0; i--)
	{
		if (passed[i].token == token)
			passed[i] = passed[--npassed];
	}
}

/* Room for one more; may raise out of memory. */
static void
reserve_passed(void)
{
	if (passed == NULL)
	{
		RegisterXactCallback(xact_callback, NULL);
		passed_size = 16;
		passed = MemoryContextAlloc(TopMemoryContext, sizeof(Passed) * passed_size);
	}
	if (npassed == passed_size)
	{
		passed = repalloc(passed, sizeof(Passed) * passed_size * 2);
		passed_size *= 2;
	}
}

void
fence_tag(LOCKTAG *tag, const char *name)
{
	LockKey		key = lock_key(name);

	lock_tag(tag, &key, SPACE_FENCE);
}

/* Take a fence, or give it back, for the whole transaction. */
static void
take_to_the_end(const char *name, const LOCKTAG *tag, LOCKMODE mode)
{
	ResourceOwner owner = CurrentResourceOwner;
	volatile bool counted = !held_by_me(tag, mode);
	LockKey		key = lock_key(name);

	if (counted)
		held_count_one(name, true);
	PG_TRY();
	{
		CurrentResourceOwner = TopTransactionResourceOwner;
		if (LockAcquire(tag, mode, false, true) == LOCKACQUIRE_NOT_AVAIL)
		{
			held_waits(name, &key, KIND_LEASE);
			(void) LockAcquire(tag, mode, false, false);
		}
		counted = false;
	}
	PG_FINALLY();
	{
		CurrentResourceOwner = owner;
		held_waits_no_more();
		if (counted)
			held_count_one_less(true);
	}
	PG_END_TRY();
}

static void
give_back(const LOCKTAG *tag, LOCKMODE mode)
{
	ResourceOwner owner = CurrentResourceOwner;

	CurrentResourceOwner = TopTransactionResourceOwner;
	(void) LockRelease(tag, mode, false);
	CurrentResourceOwner = owner;
	if (!held_by_me(tag, mode))
		held_count_one_less(true);
}

/*
 * Is the token that of a lock which this session holds, and nobody has a lease of
 * the name?  Then the transaction holds it from now on as well.
 */
static bool
pass_by_lock(const char *name, const LockKey *key, int64 token)
{
	Held	   *held;
	LeaseState	state;
	LOCKTAG		tag;

	held_check_session();
	held = held_find(key, KIND_EXCLUSIVE);
	if (held == NULL || held->token != token)
		return false;
	lock_tag(&tag, key, SPACE_LOCK);
	take_to_the_end(name, &tag, ExclusiveLock);
	held_to_the_end(held);
	lock_tag(&tag, key, SPACE_FENCE);
	take_to_the_end(name, &tag, ExclusiveLock);
	lease_get(name, &state);
	for (int i = 0; i < state.nholders; i++)
	{
		if (!lease_is_live(&state.holders[i]))
			continue;
		give_back(&tag, ExclusiveLock);
		return false;
	}
	return true;
}

/*
 * Is it the token of a lock that others may hold, too?  That is the highest so
 * far, and may well be the one that somebody has a lease by.
 */
static bool
is_of_shared_lock(const LockKey *key, int64 token)
{
	for (LockKind kind = KIND_INTENT_SHARE; kind < KIND_EXCLUSIVE; kind++)
	{
		Held	   *held = held_find(key, kind);

		if (held != NULL && held->token == token)
			return true;
	}
	return false;
}

static void
stale(const char *name, int64 token, const LeaseState *state)
{
	const LeaseHolder *holder = state->nholders > 0 ? &state->holders[0] : NULL;

	ereport(ERROR,
			(errcode(ERRCODE_COORD_FENCE_STALE),
			 errmsg("token " INT64_FORMAT " of \"%s\" is stale", token, name),
			 holder == NULL ? errdetail("Nobody holds the lease.") :
			 holder->token == token && lease_is_live(holder) ?
			 errdetail("This session has it by a lock that others may hold, too.") :
			 holder->token == token ? errdetail("Its time to live has ended.") :
			 !lease_may_see(holder) ? errdetail("Somebody else has the lease.") :
			 errdetail("The current token is " INT64_FORMAT ", of \"%s\".", holder->token, holder->owner),
			 errhint("Roll back, and acquire the lease anew. The token of a lock is good in the session that holds it.")));
}

/* coord.fence_check(name, token) */
Datum
coord_fence_check(PG_FUNCTION_ARGS)
{
	char	   *name;
	int64		token;
	LockKey		key;
	LOCKTAG		tag;
	LeaseState	state;
	LeaseHolder *holder;

	lease_check_callable("coord.fence_check()");
	name = lock_name(fcinfo, 0);
	check_required(fcinfo, 1, "token");
	token = PG_GETARG_INT64(1);
	key = lock_key(name);
	reserve_passed();
	if (!pass_by_lock(name, &key, token))
	{
		lock_tag(&tag, &key, SPACE_FENCE);
		take_to_the_end(name, &tag, ShareLock);
		DEBUG_POINT("fence_taken");
		lease_get(name, &state);
		holder = lease_find(&state, token);
		if (state.capacity > 0 || holder == NULL || !lease_is_live(holder) ||
			is_of_shared_lock(&key, token))
		{
			give_back(&tag, ShareLock);
			if (state.capacity > 0)
				ereport(ERROR,
						(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						 errmsg("\"%s\" is a semaphore", name),
						 errdetail("Several hold it at a time, so none of their tokens is the current one."),
						 errhint("Check the token of a lease or of an election.")));
			stale(name, token, &state);
		}
	}
	if (!has_passed(&key))
	{
		passed[npassed].key = key;
		passed[npassed++].token = token;
	}
	PG_RETURN_VOID();
}

/* ----------------------------------------------------------------
 *		Guarded tables
 * ----------------------------------------------------------------
 */

/* Arguments of a guard, parsed once for each place that calls it. */
typedef struct Guard
{
	Oid			relation;
	char	   *name;
	LockKey		key;
	int			column;			/* 0: the name alone */
	FmgrInfo	output;
} Guard;

static Guard *
get_guard(FunctionCallInfo fcinfo, TriggerData *trigger)
{
	MemoryContext context = fcinfo->flinfo->fn_mcxt;
	Relation	relation = trigger->tg_relation;
	char	  **args = trigger->tg_trigger->tgargs;
	Guard	   *guard = fcinfo->flinfo->fn_extra;

	if (guard != NULL && guard->relation == RelationGetRelid(relation))
		return guard;
	guard = MemoryContextAllocZero(context, sizeof(Guard));
	guard->relation = RelationGetRelid(relation);
	guard->name = MemoryContextStrdup(context, args[0]);
	guard->key = lock_key(guard->name);
	if (trigger->tg_trigger->tgnargs > 1)
	{
		Oid			output;
		bool		varlena;

		guard->column = SPI_fnumber(RelationGetDescr(relation), args[1]);
		if (guard->column <= 0)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("the key column \"%s\" of the guard on table \"%s\" does not exist", args[1],
							RelationGetRelationName(relation)),
					 errhint("SELECT coord.fence_guard(..) anew.")));
		getTypeOutputInfo(SPI_gettypeid(RelationGetDescr(relation), guard->column), &output, &varlena);
		fmgr_info_cxt(output, &guard->output, context);
	}
	fcinfo->flinfo->fn_extra = guard;
	return guard;
}

static void
refuse(TriggerData *trigger, const char *name)
{
	ereport(ERROR,
			(errcode(ERRCODE_COORD_FENCE_STALE),
			 errmsg("table \"%s\" is guarded by \"%s\"", RelationGetRelationName(trigger->tg_relation), name),
			 errdetail("This transaction has not passed coord.fence_check() for that name."),
			 errhint("Acquire the lease \"%s\", and SELECT coord.fence_check(name, token) in the transaction that writes.", name)));
}

/* The name for a row: the guard's, a slash, the key. */
static void
check_row(Guard *guard, TriggerData *trigger, HeapTuple row)
{
	bool		isnull;
	Datum		value;
	LockKey		key;
	char	   *name;

	if (row == NULL)
		return;
	value = heap_getattr(row, guard->column, RelationGetDescr(trigger->tg_relation), &isnull);
	name = psprintf("%s/%s", guard->name, isnull ? "" : OutputFunctionCall(&guard->output, value));
	key = lock_key(name);
	if (!has_passed(&key))
		refuse(trigger, name);
	pfree(name);
}

/* The trigger of a guarded table. */
Datum
coord_internal_fence_guard(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	Guard	   *guard;

	if (!CALLED_AS_TRIGGER(fcinfo) || trigger->tg_trigger->tgnargs < 1)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("coord_internal.fence_guard() is for triggers of coord.fence_guard()")));
	guard = get_guard(fcinfo, trigger);
	if (guard->column == 0 || !TRIGGER_FIRED_FOR_ROW(trigger->tg_event))
	{
		if (!has_passed(&guard->key))
			refuse(trigger, guard->name);
		if (!TRIGGER_FIRED_FOR_ROW(trigger->tg_event))
			PG_RETURN_POINTER(NULL);
	}
	else
	{
		check_row(guard, trigger, trigger->tg_trigtuple);
		if (TRIGGER_FIRED_BY_UPDATE(trigger->tg_event))
			check_row(guard, trigger, trigger->tg_newtuple);
	}
	PG_RETURN_POINTER(TRIGGER_FIRED_BY_UPDATE(trigger->tg_event) ?
					  trigger->tg_newtuple : trigger->tg_trigtuple);
}

/* The table, which must be the caller's. */
static Oid
guarded_table(FunctionCallInfo fcinfo, const char *function)
{
	Oid			table;
	char		kind;

	check_required(fcinfo, 0, "tbl");
	table = PG_GETARG_OID(0);
	installation_check();
	check_not_in_recovery(function);
	LockRelationOid(table, AccessShareLock);
	kind = get_rel_relkind(table);
	if (kind == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation with OID %u does not exist", table)));
	if (kind != RELKIND_RELATION && kind != RELKIND_PARTITIONED_TABLE)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" is not a table", get_rel_name(table))));
	if (!coord_owns_relation(table, GetUserId()))
		aclcheck_error(ACLCHECK_NOT_OWNER, OBJECT_TABLE, get_rel_name(table));
	return table;
}

static Datum
oid_array(List *oids)
{
	Datum	   *elements = palloc(sizeof(Datum) * list_length(oids));
	ListCell   *cell;

	foreach(cell, oids)
		elements[foreach_current_index(cell)] = ObjectIdGetDatum(lfirst_oid(cell));
	return PointerGetDatum(construct_array(elements, list_length(oids), OIDOID, sizeof(Oid), true,
										   TYPALIGN_INT));
}

/* Is the guard there already, with these arguments, on all the children there are? */
static bool
is_guarded(Oid table, const char *name, const char *column, List *tables)
{
	static Statement read = {
		"SELECT FROM pg_trigger WHERE tgrelid = $1 AND tgname = '" TRIGGER_NAME "' AND tgenabled = 'O'"
		" AND tgargs = convert_to($2, getdatabaseencoding()) || decode('00', 'hex')"
		"  || CASE WHEN $3 IS NULL THEN ''::bytea ELSE convert_to($3, getdatabaseencoding()) || decode('00', 'hex') END"
		" AND NOT EXISTS (SELECT FROM unnest($4) AS p(relid) WHERE NOT EXISTS"
		"  (SELECT FROM pg_trigger t WHERE t.tgrelid = p.relid AND t.tgname = '" TRUNCATE_TRIGGER_NAME "'))",
		4, {OIDOID, TEXTOID, TEXTOID, OIDARRAYOID}
	};
	QueryScope	scope;
	Datum		values[4];
	bool		nulls[4] = {false, false, column == NULL, false};
	bool		found;

	query_begin(&scope);
	values[0] = ObjectIdGetDatum(table);
	values[1] = CStringGetTextDatum(name);
	if (column != NULL)
		values[2] = CStringGetTextDatum(column);
	values[3] = oid_array(tables);
	found = query_run_latest(&read, values, nulls, 0) > 0;
	query_end(&scope);
	return found;
}

static char *
table_name(Oid table)
{
	return quote_qualified_identifier(get_namespace_name(get_rel_namespace(table)),
									  get_rel_name(table));
}

/* Does a value of this type look the same in every session? */
static bool
prints_alike(Oid type)
{
	switch (type)
	{
		case BOOLOID:
		case BPCHAROID:
		case INT2OID:
		case INT4OID:
		case INT8OID:
		case NAMEOID:
		case NUMERICOID:
		case OIDOID:
		case TEXTOID:
		case UUIDOID:
		case VARCHAROID:
			return true;
		default:
			return get_typtype(type) == TYPTYPE_ENUM;
	}
}

/*
 * 42703 when there is no such column, 0A000 when a row does not hold it.
 */
static void
check_column(Oid table, const char *column)
{
	AttrNumber	number = get_attnum(table, column);

	if (number <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("column \"%s\" of table \"%s\" does not exist", column, get_rel_name(table))));
	if (!prints_alike(getBaseType(get_atttype(table, number))))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("column \"%s\" of table \"%s\" cannot be the key of a guard", column,
						get_rel_name(table)),
				 errdetail("Values of type %s are printed as the session's settings say, so one row would have several names.",
						   format_type_be(get_atttype(table, number))),
				 errhint("Use a key of an integer, numeric, text, uuid, boolean or enum type.")));
	if (get_attgenerated(table, number) == 'v')
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("column \"%s\" of table \"%s\" is a virtual generated column", column,
						get_rel_name(table)),
				 errhint("Use a column that is stored.")));
}

/*
 * coord.fence_guard(tbl, name, key_column): from now on nobody writes to the table
 * in a transaction that has not passed.  Row triggers, so that a partition that
 * is written to directly, also one that is made later, is guarded, too; by a key
 * the row is looked at when it is written, after whatever other triggers made of
 * it.  TRUNCATE knows only triggers of the very table, and so do children by
 * INHERITS: all that there are get their own.
 */
Datum
coord_fence_guard(PG_FUNCTION_ARGS)
{
	Oid			table = guarded_table(fcinfo, "coord.fence_guard()");
	char	   *name = lock_name(fcinfo, 1);
	char	   *column = PG_ARGISNULL(2) ? NULL : NameStr(*PG_GETARG_NAME(2));
	char	   *args = quote_literal_cstr(name);
	QueryScope	scope;
	List	   *tables;
	ListCell   *cell;

	if (column != NULL)
	{
		check_column(table, column);
		args = psprintf("%s, %s", args, quote_literal_cstr(column));
	}
	tables = find_all_inheritors(table, AccessShareLock, NULL);
	if (is_guarded(table, name, column, tables))
		PG_RETURN_VOID();
	query_begin(&scope);
	foreach(cell, tables)
	{
		Oid			each = lfirst_oid(cell);

		/* Partitions have the row trigger of their parent. */
		if (each == table || !get_rel_relispartition(each))
			query_utility(psprintf("CREATE OR REPLACE TRIGGER " TRIGGER_NAME " %s INSERT OR UPDATE OR DELETE ON %s"
								   " FOR EACH ROW EXECUTE FUNCTION coord_internal.fence_guard(%s)",
								   column == NULL ? "BEFORE" : "AFTER", table_name(each), args));
		query_utility(psprintf("CREATE OR REPLACE TRIGGER " TRUNCATE_TRIGGER_NAME " BEFORE TRUNCATE ON %s"
							   " FOR EACH STATEMENT EXECUTE FUNCTION coord_internal.fence_guard(%s)",
							   table_name(each), args));
	}
	query_end(&scope);
	PG_RETURN_VOID();
}

static bool
has_trigger(Oid table, const char *trigger)
{
	static Statement read = {
		"SELECT FROM pg_trigger WHERE tgrelid = $1 AND tgname = $2::name", 2, {OIDOID, TEXTOID}
	};
	Datum		values[2] = {ObjectIdGetDatum(table), CStringGetTextDatum(trigger)};

	return query_run_latest(&read, values, NULL, 0) > 0;
}

/* coord.fence_unguard(tbl): true if it was guarded. */
Datum
coord_fence_unguard(PG_FUNCTION_ARGS)
{
	Oid			table = guarded_table(fcinfo, "coord.fence_unguard()");
	QueryScope	scope;
	ListCell   *cell;
	bool		found;

	query_begin(&scope);
	found = has_trigger(table, TRIGGER_NAME);
	if (found)
	{
		foreach(cell, find_all_inheritors(table, AccessShareLock, NULL))
		{
			Oid			each = lfirst_oid(cell);

			if ((each == table || !get_rel_relispartition(each)) && has_trigger(each, TRIGGER_NAME))
				query_utility(psprintf("DROP TRIGGER " TRIGGER_NAME " ON %s", table_name(each)));
			if (has_trigger(each, TRUNCATE_TRIGGER_NAME))
				query_utility(psprintf("DROP TRIGGER " TRUNCATE_TRIGGER_NAME " ON %s", table_name(each)));
		}
	}
	query_end(&scope);
	PG_RETURN_BOOL(found);
}
