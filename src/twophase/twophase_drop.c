/*-------------------------------------------------------------------------
 *
 * twophase_drop.c
 *	  What unresolved transactions need is not dropped.
 *
 * A prepared transaction is finished through the user mapping that it was prepared
 * by, and by what this database has recorded.  While one is in doubt, not
 * acknowledged, or being committed, DROP of the server, of the mapping, of the
 * extension or of the database is refused, however it comes about: the hook on
 * dropped objects sees also what CASCADE and DROP OWNED reach.
 *
 * A session that uses a mapping has a lock on it until its transaction ends, so DROP
 * waits for it, and then looks.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_type.h"
#include "catalog/pg_user_mapping.h"
#include "commands/dbcommands.h"
#include "commands/extension.h"
#include "foreign/foreign.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

#include "base/compat.h"
#include "base/identity.h"
#include "base/query.h"
#include "twophase/branch.h"
#include "twophase/twophase_shared.h"

static object_access_hook_type next_hook = NULL;

/* What stands against it. */
typedef struct Unresolved
{
	int64		in_doubt;
	int64		unacknowledged;
	int64		active;
	int64		unreachable;	/* participants that could not be asked */
} Unresolved;

static void
refuse(const char *what, const Unresolved *unresolved)
{
	if (unresolved->in_doubt == 0 && unresolved->unacknowledged == 0 && unresolved->active == 0 &&
		unresolved->unreachable == 0)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST),
			 errmsg("cannot drop %s because transactions that need it are not finished", what),
			 errdetail("In doubt: " INT64_FORMAT ", not acknowledged by all participants: " INT64_FORMAT ", being committed: " INT64_FORMAT ", participants that cannot be asked: " INT64_FORMAT ".",
					   unresolved->in_doubt, unresolved->unacknowledged, unresolved->active,
					   unresolved->unreachable),
			 errhint("See coord.twophase_in_doubt, coord.twophase_pending and coord.twophase_servers; SELECT * FROM coord.twophase_resolve(); tries now.")));
}

/* Are coord's tables here, so that they can be asked? */
static bool
can_be_asked(void)
{
	Oid			namespace = get_namespace_oid("coord_internal", true);

	return OidIsValid(get_extension_oid("coord", true)) && OidIsValid(namespace) &&
		OidIsValid(get_relname_relid("twophase_participant", namespace)) &&
		OidIsValid(get_relname_relid("twophase_decision", namespace)) &&
		OidIsValid(get_relname_relid("twophase_in_doubt", namespace)) &&
		OidIsValid(get_relname_relid("twophase_incarnation", namespace));
}

/*
 * What needs the server or the mapping; both 0: anything.  A decision of this run is
 * acknowledged if its session saw so, even when the resolver has not looked since.
 */
static void
find_unresolved(Oid server, Oid mapping, Unresolved *unresolved)
{
	static Statement read = {
		"WITH p AS (SELECT * FROM coord_internal.twophase_participant"
		"  WHERE server = $1 OR mapping = $2 OR $1 = 0 AND $2 = 0),"
		" open AS (SELECT d.gtid, d.gtid IN (SELECT s.gtid FROM coord_internal.twophase_sessions() s) AS active"
		"  FROM coord_internal.twophase_decision d, coord_internal.twophase_figures() g"
		"  WHERE d.gtid > (SELECT min(acked_gtid) FROM p)"
		"  AND EXISTS (SELECT FROM p WHERE p.mapping = ANY (d.mappings) AND p.acked_gtid < d.gtid)"
		"  AND CASE WHEN d.gtid >= g.first_gtid AND NOT g.many"
		"      THEN d.gtid IN (SELECT coord_internal.twophase_unacknowledged())"
		"       OR d.gtid IN (SELECT s.gtid FROM coord_internal.twophase_sessions() s)"
		"      ELSE true END)"
		" SELECT (SELECT count(*) FROM coord_internal.twophase_in_doubt"
		"   WHERE server = $1 OR mapping = $2 OR $1 = 0 AND $2 = 0),"
		"  (SELECT count(*) FROM open WHERE NOT active), (SELECT count(*) FROM open WHERE active)",
		2, {OIDOID, OIDOID}
	};
	static Statement sessions = {
		"SELECT count(*) FROM coord_internal.twophase_sessions() WHERE pid <> pg_catalog.pg_backend_pid()",
		0, {0}
	};
	QueryScope	scope;
	Datum		values[2];

	values[0] = ObjectIdGetDatum(server);
	values[1] = ObjectIdGetDatum(mapping);
	query_begin(&scope);
	query_run_latest(&read, values, NULL, 0);
	unresolved->in_doubt = query_int8(0, 1);
	unresolved->unacknowledged = query_int8(0, 2);
	unresolved->active = query_int8(0, 3);
	if (!OidIsValid(server) && !OidIsValid(mapping))
	{
		query_run_latest(&sessions, NULL, NULL, 0);
		unresolved->active = query_int8(0, 1);
	}
	query_end(&scope);
}

/*
 * Nothing is needed of a mapping that is dropped: its sessions have seen everything
 * acknowledged, perhaps without a look of the resolver's since, and there is none to
 * come.  Goes with the drop.
 */
static void
note_finished(Oid mapping)
{
	static Statement note = {
		"UPDATE coord_internal.twophase_participant SET acked_gtid = greatest(acked_gtid,"
		" (SELECT max(d.gtid) FROM coord_internal.twophase_decision d WHERE $1 = ANY (d.mappings)))"
		" WHERE mapping = $1",
		1, {OIDOID}
	};
	QueryScope	scope;
	Datum		value = ObjectIdGetDatum(mapping);

	query_begin(&scope);
	query_run(&note, &value, NULL, 0);
	query_end(&scope);
}

/* A server or a user mapping is being dropped. */
static void
check_participant(Oid class, Oid object)
{
	Oid			server = InvalidOid;
	Oid			mapping = InvalidOid;
	Unresolved	unresolved = {0};
	char	   *what;
	ForeignServer *foreign;

	if (!can_be_asked())
		return;
	if (class == ForeignServerRelationId)
		server = object;
	else
		mapping = object;
	for (int i = 0; i < nbranches; i++)
	{
		if (branches[i].remote->serverid == server || branches[i].remote->mapping == mapping)
			unresolved.active++;
	}
	if (unresolved.active == 0)
		find_unresolved(server, mapping, &unresolved);
	if (OidIsValid(mapping))
	{
		HeapTuple	tuple = SearchSysCache1(USERMAPPINGOID, ObjectIdGetDatum(mapping));

		if (!HeapTupleIsValid(tuple))
			return;
		server = ((Form_pg_user_mapping) GETSTRUCT(tuple))->umserver;
		ReleaseSysCache(tuple);
	}
	foreign = GetForeignServerExtended(server, FSV_MISSING_OK);
	what = psprintf("%s \"%s\"", OidIsValid(mapping) ? "user mapping for server" : "server",
					foreign ? foreign->servername : "?");
	refuse(what, &unresolved);
	if (OidIsValid(mapping))
		note_finished(mapping);
}

static void
object_access(ObjectAccessType access, Oid class, Oid object, int subid, void *arg)
{
	if (next_hook)
		next_hook(access, class, object, subid, arg);
	if (access == OAT_DROP && !IsBinaryUpgrade &&
		(class == ForeignServerRelationId || class == UserMappingRelationId))
		check_participant(class, object);
}

/* Called from _PG_init. */
void
twophase_drop_install(void)
{
	next_hook = object_access_hook;
	object_access_hook = object_access;
}

/*
 * Until the transaction ends the mapping cannot be dropped.  42704 when it has just
 * been.
 */
void
twophase_hold_mapping(Oid mapping)
{
	LockDatabaseObject(UserMappingRelationId, mapping, 0, AccessShareLock);
	if (!SearchSysCacheExists1(USERMAPPINGOID, ObjectIdGetDatum(mapping)))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("user mapping was dropped")));
}

/* Does the statement drop the extension coord of this database? */
static bool
drops_extension(Node *statement)
{
	ListCell   *cell;
	Identity	saved;
	Oid			owner;

	if (!OidIsValid(get_extension_oid("coord", true)))
		return false;
	if (IsA(statement, DropStmt) && ((DropStmt *) statement)->removeType == OBJECT_EXTENSION)
	{
		foreach(cell, ((DropStmt *) statement)->objects)
		{
			if (strcmp(strVal(lfirst(cell)), "coord") == 0)
				return true;
		}
	}
	if (!IsA(statement, DropOwnedStmt))
		return false;
	identity_become_extension_owner(&saved);
	owner = GetUserId();
	identity_restore(&saved);
	foreach(cell, ((DropOwnedStmt *) statement)->roles)
	{
		if (get_rolespec_oid(lfirst(cell), true) == owner)
			return true;
	}
	return false;
}

/*
 * Before DROP EXTENSION coord, also as a part of DROP OWNED, and DROP DATABASE: 2BP01
 * while something is unresolved.
 */
void
twophase_check_drop(Node *statement)
{
	Unresolved	unresolved = {0};

	if (IsA(statement, DropdbStmt))
	{
		const char *name = ((DropdbStmt *) statement)->dbname;
		Oid			database = get_database_oid(name, true);

		if (!OidIsValid(database) || !coord_owns_database(database, GetUserId()))
			return;
		twophase_unresolved(database, &unresolved.in_doubt, &unresolved.unacknowledged,
							&unresolved.active, &unresolved.unreachable);
		refuse(psprintf("database \"%s\"", name), &unresolved);
	}
	else if (drops_extension(statement) && can_be_asked())
	{
		find_unresolved(InvalidOid, InvalidOid, &unresolved);
		refuse("extension \"coord\"", &unresolved);
	}
}
