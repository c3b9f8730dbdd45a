/*-------------------------------------------------------------------------
 *
 * installation.c
 *	  Is coord here, is it the version this library is for, may it act?
 *
 * The installed script's version is told by a function that the script makes
 * and whose name bears it.  That it is there is remembered until an invalidation
 * of a function or a schema, which ALTER EXTENSION .. UPDATE sends everywhere, so
 * it can be asked at every entry.  (Looking it up each time was a fifth of a lock's
 * CPU.)
 *
 * A copy is told by coord_internal.identity.  The script writes one row with
 * the system identifier and database oid; the row is dumped with the data.  A
 * database made from a template has only the original's row, a restored one has
 * the original's beside its own: any row that is not about this database says
 * that it is a copy, which must not act until coord.resume().  Besides, each
 * unfinished saga bears its home, and none is claimed anywhere else: a restore
 * may load the sagas before it loads the identity.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "catalog/namespace.h"
#include "catalog/objectaddress.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

#include "base/errors.h"
#include "base/guc.h"
#include "base/installation.h"
#include "base/query.h"

#define LIBRARY_VERSION "1.0"
#define VERSION_FUNCTION "version_1_0"

/* What the tables said, until an invalidation of either says otherwise. */
static bool state_valid = false;
static uint64 state_changes = 0;
static EngineState state = ENGINE_RUNNING;
static bool foreign = false;
static Oid	pause_relid = InvalidOid;
static bool callback_registered = false;

/* The version function was found, and nothing has changed since. */
static bool version_valid = false;
static uint64 catalog_changes = 0;
static bool catalog_callbacks_registered = false;

PG_FUNCTION_INFO_V1(coord_internal_system_identifier);
PG_FUNCTION_INFO_V1(coord_internal_engine_state);
PG_FUNCTION_INFO_V1(coord_internal_home);
PG_FUNCTION_INFO_V1(coord_internal_state_changed);

/* Is the extension installed in this database? */
bool
installation_exists(void)
{
	return OidIsValid(get_namespace_oid("coord_internal", true)) &&
		OidIsValid(get_extension_oid("coord", true));
}

static void
catalog_callback(Datum arg, int cache, uint32 hash)
{
	version_valid = false;
	catalog_changes++;
}

/*
 * Raise ZC007 unless the SQL objects are those that this library was made for.
 */
void
installation_check(void)
{
	Oid			namespace;
	oidvector  *noargs;
	uint64		changes;
	bool		found;

	if (version_valid)
		return;
	if (!catalog_callbacks_registered)
	{
		CacheRegisterSyscacheCallback(PROCOID, catalog_callback, (Datum) 0);
		CacheRegisterSyscacheCallback(NAMESPACEOID, catalog_callback, (Datum) 0);
		catalog_callbacks_registered = true;
	}

	/* Valid only when nothing has changed while it was looked up. */
	changes = catalog_changes;
	namespace = get_namespace_oid("coord_internal", true);
	noargs = buildoidvector(NULL, 0);
	found = OidIsValid(namespace) &&
		SearchSysCacheExists3(PROCNAMEARGSNSP, CStringGetDatum(VERSION_FUNCTION),
							  PointerGetDatum(noargs), ObjectIdGetDatum(namespace));
	pfree(noargs);
	if (!found)
		ereport(ERROR,
				(errcode(ERRCODE_COORD_VERSION_MISMATCH),
				 errmsg("coord's library and SQL objects are of different versions"),
				 errdetail("The library loaded in this process is version %s.",
						   LIBRARY_VERSION),
				 errhint("Restart the server after installing a new library, then run ALTER EXTENSION coord UPDATE in this database.")));
	version_valid = changes == catalog_changes;
}

/*
 * Take part in what DROP EXTENSION excludes: every turn holds AccessShareLock
 * on the extension until its transaction ends, DROP EXTENSION takes
 * AccessExclusiveLock on it before it looks at a table, and so does
 * coord.drain().  One lock, taken first by all: no deadlock.  Returns false
 * when the extension is gone.
 */
bool
installation_lock(LOCKMODE mode)
{
	Oid			extension = get_extension_oid("coord", true);

	if (!OidIsValid(extension))
		return false;
	LockDatabaseObject(ExtensionRelationId, extension, 0, mode);
	return get_extension_oid("coord", true) == extension &&
		OidIsValid(get_namespace_oid("coord_internal", true));
}

/* The same without waiting: false as well when somebody else holds it. */
bool
installation_try_lock(LOCKMODE mode)
{
	Oid			extension = get_extension_oid("coord", true);
	LOCKTAG		tag;

	if (!OidIsValid(extension))
		return false;
	SET_LOCKTAG_OBJECT(tag, MyDatabaseId, ExtensionRelationId, extension, 0);
	return LockAcquire(&tag, mode, false, true) != LOCKACQUIRE_NOT_AVAIL;
}

static void
relcache_callback(Datum arg, Oid relid)
{
	if (!OidIsValid(relid) || relid == pause_relid)
	{
		state_valid = false;
		state_changes++;
	}
}

/* Make every process read the engine's state again once this commits. */
void
installation_state_changed(void)
{
	Oid			namespace = get_namespace_oid("coord_internal", false);

	CacheInvalidateRelcacheByRelid(get_relname_relid("engine_pause", namespace));
	state_valid = false;
	state_changes++;
}

/* Read the tables, if something has changed since. */
static void
refresh_state(void)
{
	static Statement read = {
		"SELECT EXISTS (SELECT FROM coord_internal.engine_pause),"
		" EXISTS (SELECT FROM coord_internal.identity"
		" WHERE (system_identifier, database) IS DISTINCT FROM ($1, $2)),"
		" EXISTS (SELECT FROM coord_internal.identity WHERE system_identifier <> $1)",
		2, {INT8OID, OIDOID}
	};

	if (!callback_registered)
	{
		CacheRegisterRelcacheCallback(relcache_callback, (Datum) 0);
		callback_registered = true;
	}
	if (!state_valid)
	{
		QueryScope	scope;
		Datum		values[2];
		bool		isnull;
		bool		paused;
		bool		copy;
		uint64		changes;

		/* Valid only when all is read, and nothing has changed meanwhile. */
		pause_relid = get_relname_relid("engine_pause",
										get_namespace_oid("coord_internal", false));
		changes = state_changes;
		query_begin(&scope);
		values[0] = Int64GetDatum((int64) GetSystemIdentifier());
		values[1] = ObjectIdGetDatum(MyDatabaseId);
		query_run_latest(&read, values, NULL, 0);
		paused = DatumGetBool(query_value(0, 1, &isnull));
		copy = DatumGetBool(query_value(0, 2, &isnull));
		foreign = DatumGetBool(query_value(0, 3, &isnull));
		query_end(&scope);
		state = copy ? ENGINE_COPY : paused ? ENGINE_PAUSED : ENGINE_RUNNING;
		state_valid = changes == state_changes;
	}
}

/*
 * May the engine act here?  Reads the tables only after something changed.
 */
EngineState
installation_state(void)
{
	if (!guc_enabled)
		return ENGINE_DISABLED;
	refresh_state();
	return state;
}

/* Is this a copy from another cluster, whose role oids mean nothing here? */
bool
installation_is_foreign(void)
{
	refresh_state();
	return foreign;
}

/* Was this database made from another one, and not been taken over yet? */
bool
installation_is_copy(void)
{
	refresh_state();
	return state == ENGINE_COPY;
}

/*
 * 55000 in a copy from another cluster: names and grants made there now could
 * not be told from those that came with the copy.
 */
void
installation_check_not_foreign(void)
{
	if (installation_is_foreign())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("this database is a copy from another cluster"),
				 errdetail("Roles have other oids here, and coord has not yet taken them over."),
				 errhint("SELECT coord.resume(); if this database shall act.")));
}

const char *
installation_state_text(EngineState which)
{
	switch (which)
	{
		case ENGINE_RUNNING:
			return "running";
		case ENGINE_DISABLED:
			return "disabled";
		case ENGINE_PAUSED:
			return "paused";
		case ENGINE_COPY:
			return "copy";
	}
	return NULL;
}

Datum
coord_internal_system_identifier(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64((int64) GetSystemIdentifier());
}

Datum
coord_internal_engine_state(PG_FUNCTION_ARGS)
{
	PG_RETURN_TEXT_P(cstring_to_text(installation_state_text(installation_state())));
}

/*
 * Trigger on identity and engine_pause: a restore writes them with COPY, and a
 * worker that is there already must notice.
 */
Datum
coord_internal_state_changed(PG_FUNCTION_ARGS)
{
	installation_state_changed();
	PG_RETURN_POINTER(NULL);
}

/*
 * What says in each row of work that it is this database's own.  A copy of the
 * row elsewhere says so by itself, in whatever order a restore loads tables.
 */
int64
installation_home(void)
{
	return (int64) (GetSystemIdentifier() ^
					(uint64) MyDatabaseId * UINT64CONST(0x9E3779B97F4A7C15));
}

Datum
coord_internal_home(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64(installation_home());
}
