/*-------------------------------------------------------------------------
 *
 * access.c
 *	  What a caller may see and use, and the names of roles that own work.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "base/access.h"
#include "base/installation.h"
#include "base/query.h"

/*
 * Roles that are known to be in coord_internal.principal.  Entries beyond
 * "principals_committed" were added by the open transaction.
 */
static Oid *principals = NULL;
static int	nprincipals = 0;
static int	principals_committed = 0;
static bool principals_callback = false;

/* The schema they were noted in: another one after DROP and CREATE EXTENSION. */
static Oid	principals_namespace = InvalidOid;

PG_FUNCTION_INFO_V1(coord_internal_is_mine);
PG_FUNCTION_INFO_V1(coord_internal_role_name);
PG_FUNCTION_INFO_V1(coord_internal_sees_all);

/*
 * May "role" see and operate everything?  Superusers and members of coord_admin
 * may.  (pg_monitor only sees: coord_internal.sees_all().)
 */
bool
access_sees_all(Oid role)
{
	Oid			admin;

	if (superuser_arg(role))
		return true;
	admin = get_role_oid("coord_admin", true);
	if (OidIsValid(admin) && is_member_of_role(role, admin))
		return true;
	return false;
}

Datum
coord_internal_sees_all(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(access_sees_all(GetUserId()) ||
				   has_privs_of_role(GetUserId(), ROLE_PG_MONITOR));
}

/*
 * Is the current user a member of the role that a table's oid means?  In a copy
 * under another system identifier it means somebody else until coord.resume()
 * has put that right, so nobody is.
 */
static bool
is_mine(Oid owner)
{
	return is_member_of_role(GetUserId(), owner) && !installation_is_foreign();
}

Datum
coord_internal_is_mine(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(!PG_ARGISNULL(0) && is_mine(PG_GETARG_OID(0)));
}

/*
 * May the current user act on something of "owner": as its member, as
 * coord_admin, or through coord.grant_use(kind, name)?  "name" may be NULL
 * where use cannot be granted.
 */
bool
access_may_act(Oid owner, const char *kind, const char *name)
{
	static Statement grants = {
		"SELECT role FROM coord_internal.use_grant WHERE kind = $1 AND name = $2",
		2, {TEXTOID, TEXTOID}
	};
	Oid			user = GetUserId();
	QueryScope	scope;
	Datum		values[2];
	bool		found = false;
	uint64		rows;

	if (is_mine(owner) || access_sees_all(user))
		return true;
	if (name == NULL || installation_is_foreign())
		return false;

	query_begin(&scope);
	values[0] = CStringGetTextDatum(kind);
	values[1] = CStringGetTextDatum(name);
	rows = query_run(&grants, values, NULL, 0);
	for (uint64 i = 0; i < rows && !found; i++)
	{
		bool		isnull;
		Oid			role = DatumGetObjectId(query_value(i, 1, &isnull));

		found = is_member_of_role(user, role);
	}
	query_end(&scope);
	return found;
}

/*
 * A role noted by a transaction that is rolled back, or that rolls back a
 * savepoint, is taken as not noted.
 */
static void
principals_xact_callback(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_COMMIT)
		principals_committed = nprincipals;
	else if (event == XACT_EVENT_ABORT || event == XACT_EVENT_PREPARE)
		nprincipals = principals_committed;
}

static void
principals_subxact_callback(SubXactEvent event, SubTransactionId mine,
							SubTransactionId parent, void *arg)
{
	if (event == SUBXACT_EVENT_ABORT_SUB)
		nprincipals = principals_committed;
}

/* Is there nothing to note for "role", as far as this process knows? */
bool
access_role_is_noted(Oid role)
{
	if (principals_namespace != get_namespace_oid("coord_internal", true))
		nprincipals = principals_committed = 0;
	for (int i = 0; i < nprincipals; i++)
	{
		if (principals[i] == role)
			return true;
	}
	return false;
}

/*
 * Keep the name of "role" beside its oid, which the tables store: a rename
 * changes nothing then, and a copy in another cluster, where the oid is
 * somebody else's, finds the role again by its name (coord.resume()).  To be
 * called in a short transaction of its own: a concurrent one of the same role
 * waits for its end.
 */
void
access_note_role(Oid role)
{
	static Statement note = {
		"INSERT INTO coord_internal.principal (role, name)"
		" SELECT oid, rolname FROM pg_catalog.pg_authid WHERE oid = $1"
		" ON CONFLICT DO NOTHING",
		1, {OIDOID}
	};
	QueryScope	scope;
	Datum		value = ObjectIdGetDatum(role);

	if (access_role_is_noted(role))
		return;
	principals_namespace = get_namespace_oid("coord_internal", true);
	if (!principals_callback)
	{
		RegisterXactCallback(principals_xact_callback, NULL);
		RegisterSubXactCallback(principals_subxact_callback, NULL);
		principals_callback = true;
	}

	query_begin(&scope);
	query_run(&note, &value, NULL, 0);
	query_end(&scope);

	if (principals == NULL)
		principals = MemoryContextAlloc(TopMemoryContext, sizeof(Oid));
	else
		principals = repalloc(principals, (nprincipals + 1) * sizeof(Oid));
	principals[nprincipals++] = role;
}

/*
 * The names of noted roles may have changed since.  For workers, in a short
 * transaction.
 */
void
access_refresh_roles(void)
{
	static Statement refresh = {
		"UPDATE coord_internal.principal p SET name = a.rolname"
		" FROM pg_catalog.pg_authid a WHERE a.oid = p.role AND a.rolname <> p.name",
		0, {0}
	};
	QueryScope	scope;

	query_begin(&scope);
	query_run(&refresh, NULL, NULL, 0);
	query_end(&scope);
}

/* A role's name, also that of one that was dropped; else its oid. */
Datum
coord_internal_role_name(PG_FUNCTION_ARGS)
{
	static Statement read = {
		"SELECT name::text FROM coord_internal.principal WHERE role = $1",
		1, {OIDOID}
	};
	Name		result = palloc0(NAMEDATALEN);
	QueryScope	scope;
	Datum		value;
	char	   *name;

	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	value = PG_GETARG_DATUM(0);
	name = GetUserNameFromId(DatumGetObjectId(value), true);
	if (name == NULL)
	{
		MemoryContext context = CurrentMemoryContext;

		query_begin(&scope);
		if (query_run(&read, &value, NULL, 1) > 0)
			name = query_text(context, 0, 1);
		query_end(&scope);
	}
	if (name == NULL)
		name = psprintf("%u", DatumGetObjectId(value));
	namestrcpy(result, name);
	PG_RETURN_NAME(result);
}
