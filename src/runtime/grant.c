/*-------------------------------------------------------------------------
 *
 * grant.c
 *	  coord.grant_use() and coord.revoke_use().
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "base/access.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/identity.h"
#include "base/installation.h"
#include "base/query.h"
#include "lock/lock.h"
#include "saga/saga.h"

PG_FUNCTION_INFO_V1(coord_grant_use);
PG_FUNCTION_INFO_V1(coord_revoke_use);

static const char *const kinds[] = {
	"saga", "queue", "subscription", "lock", "stream"
};

/*
 * Arguments of both; returns the grantee.  The name must be the caller's to
 * give: for the members of its owner, of a queue of one of its owners, and for
 * coord_admin.
 */
static Oid
check_grant(FunctionCallInfo fcinfo, char **kind, char **name)
{
	Oid			user = GetUserId();
	Oid			owner;
	bool		known = false;

	installation_check();
	installation_check_not_foreign();
	*kind = check_text(fcinfo, 0, "kind");
	*name = check_text(fcinfo, 1, "name");
	check_required(fcinfo, 2, "grantee");
	for (int i = 0; i < lengthof(kinds); i++)
		known = known || strcmp(kinds[i], *kind) == 0;
	if (!known)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("unknown kind \"%s\"", *kind),
				 errhint("Kinds are saga, queue, subscription, lock and stream.")));
	check_name("name", *name);
	if (strcmp(*kind, "queue") == 0)
	{
		queue_check_mine(*name);
		return get_role_oid(NameStr(*PG_GETARG_NAME(2)), false);
	}
	if (strcmp(*kind, "lock") == 0)
	{
		if (!access_sees_all(user))
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
					 errmsg("permission denied for prefix \"%s\" of lock names", *name),
					 errdetail("To close a prefix to others is for members of coord_admin.")));
		return get_role_oid(NameStr(*PG_GETARG_NAME(2)), false);
	}
	if (strcmp(*kind, "stream") == 0)
		return get_role_oid(NameStr(*PG_GETARG_NAME(2)), false);
	if (strcmp(*kind, "saga") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("use of kind \"%s\" cannot be granted yet", *kind)));

	owner = saga_name_owner(*name);
	if (!OidIsValid(owner) || !(is_member_of_role(user, owner) || access_sees_all(user)))
		saga_name_unknown(*name);
	return get_role_oid(NameStr(*PG_GETARG_NAME(2)), false);
}

/*
 * coord.grant_use(kind, name, grantee): true if it was not granted already.  The
 * use of a queue comprises the tasks that the grantor may use himself, so that
 * several may grant it to the same role; see saga_queue_config.c.  The use of a prefix
 * of streams likewise comprises those that the grantor is an owner of; see
 * event_stream.c.
 */
Datum
coord_grant_use(PG_FUNCTION_ARGS)
{
	static Statement insert = {
		"INSERT INTO coord_internal.use_grant (kind, name, role, granted_by, granted_at)"
		" SELECT $1, $2, $3, $4, $5 WHERE NOT EXISTS"
		" (SELECT FROM coord_internal.use_grant"
		" WHERE kind = $1 AND name = $2 AND role = $3"
		" AND (kind NOT IN ('queue', 'stream') OR granted_by = $4))",
		5, {TEXTOID, TEXTOID, OIDOID, OIDOID, TIMESTAMPTZOID}
	};
	Oid			user = GetUserId();
	char	   *kind;
	char	   *name;
	Oid			grantee = check_grant(fcinfo, &kind, &name);
	QueryScope	scope;
	Datum		values[5];
	bool		changed;

	query_begin(&scope);
	values[0] = CStringGetTextDatum(kind);
	values[1] = CStringGetTextDatum(name);
	values[2] = ObjectIdGetDatum(grantee);
	values[3] = ObjectIdGetDatum(user);
	values[4] = TimestampTzGetDatum(clock_now());
	changed = query_run(&insert, values, NULL, 0) > 0;
	query_end(&scope);
	access_note_role(grantee);
	if (changed && (strcmp(kind, "queue") == 0 || strcmp(kind, "stream") == 0))
		access_note_role(user);
	if (changed && strcmp(kind, "queue") == 0)
		queue_changed(name);
	if (changed && strcmp(kind, "lock") == 0)
		lock_prefixes_changed();
	PG_RETURN_BOOL(changed);
}

/*
 * coord.revoke_use(kind, name, grantee): true if it was granted.  Of a queue each
 * takes back what he gave, coord_admin all.
 */
Datum
coord_revoke_use(PG_FUNCTION_ARGS)
{
	static Statement delete = {
		"DELETE FROM coord_internal.use_grant"
		" WHERE kind = $1 AND name = $2 AND role = $3"
		" AND (kind NOT IN ('queue', 'stream') OR $4 OR pg_has_role($5, granted_by, 'MEMBER'))",
		5, {TEXTOID, TEXTOID, OIDOID, BOOLOID, OIDOID}
	};
	Oid			user = GetUserId();
	char	   *kind;
	char	   *name;
	Oid			grantee = check_grant(fcinfo, &kind, &name);
	QueryScope	scope;
	Datum		values[5];
	bool		changed;

	query_begin(&scope);
	values[0] = CStringGetTextDatum(kind);
	values[1] = CStringGetTextDatum(name);
	values[2] = ObjectIdGetDatum(grantee);
	values[3] = BoolGetDatum(access_sees_all(user));
	values[4] = ObjectIdGetDatum(user);
	changed = query_run(&delete, values, NULL, 0) > 0;
	query_end(&scope);
	if (changed && strcmp(kind, "queue") == 0)
		queue_changed(name);
	if (changed && strcmp(kind, "lock") == 0)
		lock_prefixes_changed();
	PG_RETURN_BOOL(changed);
}
