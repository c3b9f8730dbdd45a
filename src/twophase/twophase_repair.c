/*-------------------------------------------------------------------------
 *
 * twophase_repair.c
 *	  What operators do: end one prepared transaction by hand, take over those of an
 *	  earlier incarnation, make a restore point that all servers can go back to.
 *
 * A verb acts at participants at once, whatever becomes of the transaction that
 * called it; so besides the row in twophase_log, which goes with that transaction,
 * there is a line in the server's log.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "foreign/foreign.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"

#include "base/access.h"
#include "base/check.h"
#include "base/compat.h"
#include "base/errors.h"
#include "base/installation.h"
#include "base/query.h"
#include "twophase/branch.h"
#include "twophase/repair.h"
#include "twophase/resolve.h"
#include "twophase/twophase_shared.h"

/* How long a participant is waited for. */
#define ANSWER_US (10 * USECS_PER_SEC)

PG_FUNCTION_INFO_V1(coord_twophase_force);
PG_FUNCTION_INFO_V1(coord_twophase_adopt);
PG_FUNCTION_INFO_V1(coord_create_restore_point);

/* ----------------------------------------------------------------
 *		Shared with settle.c and twophase_verbs.c
 * ----------------------------------------------------------------
 */

/*
 * What every operator's verb asks first: 42501 unless the caller rules here, 25001 in
 * a transaction that has participants, for their connections are in use; and this
 * database must be one that acts.
 */
void
repair_check(const char *function)
{
	if (!access_sees_all(GetUserId()))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for function %s", function),
				 errdetail("It is for members of coord_admin.")));
	check_not_in_recovery(psprintf("%s()", function));
	if (nbranches > 0)
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("%s() cannot be called in a transaction that has participants", function),
				 errhint("Call it by itself.")));
	if (installation_is_copy())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("this database is a copy and does not act"),
				 errhint("SELECT coord.resume(); if it shall.")));
	branch_be_ready();
}

/*
 * As whom the server can be asked, in the current memory context: by mappings that are
 * written down, and, if "own", first by the caller's own.
 */
List *
repair_roles(Oid server, bool own)
{
	static Statement read = {
		"SELECT p.role FROM coord_internal.twophase_participant p"
		" JOIN pg_user_mapping m ON m.oid = p.mapping WHERE p.server = $1 ORDER BY p.mapping",
		1, {OIDOID}
	};
	MemoryContext context = CurrentMemoryContext;
	QueryScope	scope;
	Datum		value = ObjectIdGetDatum(server);
	List	   *result = NIL;
	Oid			user = GetUserId();
	uint64		rows;

	if (own && coord_server_aclcheck(server, user) == ACLCHECK_OK)
		result = list_make1_oid(user);
	query_begin(&scope);
	rows = query_run_latest(&read, &value, NULL, 0);
	for (uint64 i = 0; i < rows; i++)
	{
		bool		isnull;
		Oid			role = DatumGetObjectId(query_value(i, 1, &isnull));
		MemoryContext old = MemoryContextSwitchTo(context);

		result = list_append_unique_oid(result, role);
		MemoryContextSwitchTo(old);
	}
	query_end(&scope);
	return result;
}

/*
 * A connection to the server by the mapping of a role; NULL and why in "error" when
 * there is none.  The caller gives it back with remote_release(), before anything that
 * may raise errors.
 */
Remote *
repair_connect(Oid role, Oid server, char **error)
{
	MemoryContext context = CurrentMemoryContext;
	Remote	   *volatile remote = NULL;

	PG_TRY();
	{
		UserMapping *mapping = GetUserMapping(role, server);

		remote = remote_find(GetForeignServer(server), mapping);
		remote_connect(remote, remote_now() + ANSWER_US);
		remote->in_use = true;
	}
	PG_CATCH();
	{
		ErrorData  *data;

		if (remote != NULL)
			remote_close(remote);
		MemoryContextSwitchTo(context);
		data = CopyErrorData();
		if (data->sqlerrcode == ERRCODE_QUERY_CANCELED ||
			data->sqlerrcode == ERRCODE_ADMIN_SHUTDOWN)
			PG_RE_THROW();
		FlushErrorState();
		*error = data->detail ? psprintf("%s: %s", data->message, data->detail) : data->message;
		return NULL;
	}
	PG_END_TRY();
	return remote;
}

/*
 * Run one statement, with at most one value, in a transaction of its own.  NULL and
 * why in "error" when it failed; a connection that is lost by that is closed.
 */
PGresult *
repair_ask(Remote *remote, const char *sql, const char *value, char **error)
{
	const char *values[1] = {value};
	PGresult   *failure;

	remote_batch(remote);
	(void) remote_add(remote, sql, value ? 1 : 0, values, false);
	(void) remote_go(remote);
	PG_TRY();
	{
		(void) remote_wait(&remote, 1, remote_now() + ANSWER_US, true);
	}
	PG_CATCH();
	{
		remote_close(remote);
		PG_RE_THROW();
	}
	PG_END_TRY();
	if (remote->state != REMOTE_IDLE)
	{
		*error = remote_is_under_way(remote) ? "it did not answer in time" : "the connection was lost";
		remote_close(remote);
		return NULL;
	}
	failure = remote_error(remote);
	if (failure != NULL)
	{
		*error = pstrdup(PQresultErrorField(failure, PG_DIAG_MESSAGE_PRIMARY));
		return NULL;
	}
	return remote->results[0];
}

/* Write down what was done; "gid", "server" and "outcome" may be missing. */
void
repair_log(const char *event, const char *gid, Oid server, const char *outcome,
		   const char *reason)
{
	static Statement insert = {
		"INSERT INTO coord_internal.twophase_log (at, event, gid, server, outcome, role, reason)"
		" VALUES ($1, $2, $3, $4, $5, $6, $7)",
		7, {TIMESTAMPTZOID, TEXTOID, TEXTOID, OIDOID, TEXTOID, OIDOID, TEXTOID}
	};
	QueryScope	scope;
	Datum		values[7];
	bool		nulls[7] = {false};

	values[0] = TimestampTzGetDatum(GetCurrentTimestamp());
	values[1] = CStringGetTextDatum(event);
	nulls[2] = gid == NULL;
	values[2] = gid ? CStringGetTextDatum(gid) : (Datum) 0;
	nulls[3] = !OidIsValid(server);
	values[3] = ObjectIdGetDatum(server);
	nulls[4] = outcome == NULL;
	values[4] = outcome ? CStringGetTextDatum(outcome) : (Datum) 0;
	values[5] = ObjectIdGetDatum(GetUserId());
	nulls[6] = reason == NULL;
	values[6] = reason ? CStringGetTextDatum(reason) : (Datum) 0;
	query_begin(&scope);
	query_run(&insert, values, nulls, 0);
	query_end(&scope);
}

/*
 * How another part of the same transaction was ended by an operator, or by adoption;
 * NULL: none was.  In the current memory context.
 */
char *
repair_noted_outcome(const char *gid)
{
	static Statement read = {
		"SELECT outcome FROM coord_internal.twophase_log"
		" WHERE event IN ('forced', 'adopted') AND outcome IS NOT NULL AND pg_catalog.starts_with(gid, $1)"
		" ORDER BY id DESC LIMIT 1", 1, {TEXTOID}
	};
	MemoryContext context = CurrentMemoryContext;
	QueryScope	scope;
	char	   *prefix = pstrdup(gid);
	char	   *result = NULL;
	Datum		value;

	/* All but "i/n" and what is behind it. */
	*strchr(prefix, '/') = '\0';
	strrchr(prefix, ':')[1] = '\0';
	value = CStringGetTextDatum(prefix);
	query_begin(&scope);
	if (query_run_latest(&read, &value, NULL, 1) > 0)
		result = query_text(context, 0, 1);
	query_end(&scope);
	return result;
}

/* The same by the transaction's id. */
char *
repair_noted_outcome_of(int64 gtid)
{
	static Statement read = {
		"SELECT outcome FROM coord_internal.twophase_log"
		" WHERE event IN ('forced', 'adopted') AND outcome IS NOT NULL AND coord_internal.gid_gtid(gid) = $1"
		" ORDER BY id DESC LIMIT 1", 1, {INT8OID}
	};
	MemoryContext context = CurrentMemoryContext;
	QueryScope	scope;
	char	   *result = NULL;
	Datum		value = Int64GetDatum(gtid);

	query_begin(&scope);
	if (query_run_latest(&read, &value, NULL, 1) > 0)
		result = query_text(context, 0, 1);
	query_end(&scope);
	return result;
}

/* A reason that operators must give. */
static char *
required_reason(FunctionCallInfo fcinfo, int argument, const char *name)
{
	char	   *result = check_text(fcinfo, argument, name);

	if (*result == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must not be empty", name)));
	return result;
}

/* ----------------------------------------------------------------
 *		coord.twophase_force()
 * ----------------------------------------------------------------
 */

/* The name's parts; 22023 when it is none of this database's. */
static void
read_own_gid(const char *text, Gid *gid)
{
	if (!gid_read(text, gid))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"%s\" is not the name of a prepared transaction of coord's", text),
				 errhint("See coord.twophase_in_doubt.")));
	if (memcmp(gid->cluster.data, twophase_database()->cluster.data, UUID_LEN) != 0 ||
		gid->database != MyDatabaseId)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"%s\" was not prepared by this database", text),
				 errdetail("Only the database that coordinates it knows what was decided.")));
}

/* Is there a decision to commit it? */
static bool
is_decided(int64 gtid)
{
	static Statement read = {
		"SELECT FROM coord_internal.twophase_decision WHERE gtid = $1", 1, {INT8OID}
	};
	QueryScope	scope;
	Datum		value = Int64GetDatum(gtid);
	bool		result;

	query_begin(&scope);
	result = query_run_latest(&read, &value, NULL, 1) > 0;
	query_end(&scope);
	return result;
}

/*
 * 55000 if the outcome contradicts what is known.  The transaction was seen prepared
 * before; who is active is read before the decision, see twophase_shared.c.
 */
static void
check_not_contradicted(const char *text, const Gid *gid, bool commit)
{
	bool		active = twophase_is_active(gid->gtid);
	bool		decided = is_decided(gid->gtid);
	char	   *noted;

	if (active)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("transaction " INT64_FORMAT " is not over yet", gid->gtid),
				 errdetail("Its session will finish it."),
				 errhint("See coord.twophase_active.")));
	if (decided && !commit)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("transaction " INT64_FORMAT " is committed", gid->gtid),
				 errdetail("Its decision is recorded here, other participants may have committed."),
				 errhint("Its outcome is committed.")));
	if (decided && !resolve_is_safe())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the decision of transaction " INT64_FORMAT " has not reached the synchronous standby yet",
						gid->gtid)));
	if (decided)
		return;
	if (commit && gid->incarnation == twophase_database()->incarnation &&
		gid->gtid > resolve_forgotten())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("transaction " INT64_FORMAT " is aborted", gid->gtid),
				 errdetail("It was prepared by this incarnation of the database, which has recorded no decision to commit it."),
				 errhint("Its outcome is aborted.")));
	noted = repair_noted_outcome(text);
	if (noted != NULL && strcmp(noted, commit ? "committed" : "aborted") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("transaction " INT64_FORMAT " is %s", gid->gtid, noted),
				 errdetail("It was ended so at another participant."),
				 errhint("See coord.twophase_history.")));
}

/* A connection by which the prepared transaction can be finished, or an error. */
static Remote *
find_prepared(const char *server, Oid serverid, const char *gid)
{
	List	   *roles = repair_roles(serverid, true);
	char	   *error = NULL;
	char	   *owner = NULL;
	bool		absent = false;
	ListCell   *cell;

	foreach(cell, roles)
	{
		Remote	   *remote = repair_connect(lfirst_oid(cell), serverid, &error);
		PGresult   *result;

		if (remote == NULL)
			continue;
		result = repair_ask(remote,
							"SELECT p.owner, p.owner = current_user OR r.rolsuper,"
							" p.database = pg_catalog.current_database()"
							" FROM pg_catalog.pg_roles r LEFT JOIN pg_catalog.pg_prepared_xacts p ON p.gid = $1"
							" WHERE r.rolname = current_user AND NOT pg_catalog.pg_is_in_recovery()",
							gid, &error);
		if (result == NULL)
		{
			if (remote->state != REMOTE_CLOSED)
				remote_release(remote, false);
			continue;
		}
		if (PQntuples(result) == 0)
			error = "it is a standby";
		else if (PQgetisnull(result, 0, 0))
			absent = true;
		else if (PQgetvalue(result, 0, 2)[0] != 't')
			error = "it is prepared in another database there";
		else if (PQgetvalue(result, 0, 1)[0] == 't')
			return remote;
		else
			owner = pstrdup(PQgetvalue(result, 0, 0));
		remote_release(remote, false);
	}
	if (owner != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("no user mapping can finish \"%s\" at server \"%s\"", gid, server),
				 errdetail("Role \"%s\" prepared it there: only that role and superusers may finish it.",
						   owner),
				 errhint("Make a user mapping for yourself that connects as one of them.")));
	if (absent)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("nothing is prepared as \"%s\" at server \"%s\"", gid, server),
				 errdetail("It has been finished already.")));
	if (error == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("server \"%s\" is not a participant", server),
				 errdetail("It was never used, and you have no user mapping for it.")));
	ereport(ERROR,
			(errcode(ERRCODE_COORD_PARTICIPANT_FAILED),
			 errmsg("server \"%s\" cannot be asked", server),
			 errdetail_internal("%s", error)));
}

/* Nothing is in doubt about it any more. */
static void
forget_doubt(const char *gid, Oid server)
{
	static Statement forget = {
		"DELETE FROM coord_internal.twophase_in_doubt WHERE gid = $1 AND server = $2",
		2, {TEXTOID, OIDOID}
	};
	QueryScope	scope;
	Datum		values[2];

	values[0] = CStringGetTextDatum(gid);
	values[1] = ObjectIdGetDatum(server);
	query_begin(&scope);
	query_run(&forget, values, NULL, 0);
	query_end(&scope);
}

/* coord.twophase_force(gid, server, outcome, reason) */
Datum
coord_twophase_force(PG_FUNCTION_ARGS)
{
	char	   *text = check_text(fcinfo, 0, "gid");
	char	   *server;
	char	   *outcome;
	char	   *reason;
	bool		commit;
	Oid			serverid;
	Gid			gid;
	Remote	   *volatile remote = NULL;
	char	   *error = NULL;
	char	   *tag;

	check_required(fcinfo, 1, "server");
	server = NameStr(*PG_GETARG_NAME(1));
	outcome = check_text(fcinfo, 2, "outcome");
	reason = required_reason(fcinfo, 3, "reason");
	commit = strcmp(outcome, "committed") == 0;
	if (!commit && strcmp(outcome, "aborted") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("unknown outcome \"%s\"", outcome),
				 errhint("It is committed or aborted.")));
	repair_check("coord.twophase_force");
	read_own_gid(text, &gid);
	serverid = GetForeignServerByName(server, false)->serverid;
	resolve_take_turn();

	remote = find_prepared(server, serverid, text);
	PG_TRY();
	{
		check_not_contradicted(text, &gid, commit);
		repair_log("forced", text, serverid, outcome, reason);
		forget_doubt(text, serverid);
		tag = commit ? "COMMIT PREPARED" : "ROLLBACK PREPARED";
		if (repair_ask(remote, psprintf("%s '%s'", tag, text), NULL, &error) == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_COORD_PARTICIPANT_FAILED),
					 errmsg("\"%s\" could not be finished at server \"%s\"", text, server),
					 errdetail_internal("%s", error)));
		if (remote->warned)
			ereport(WARNING,
					(errmsg("server \"%s\" answered with a warning", server),
					 errdetail("Perhaps its wait for a synchronous standby was cancelled.")));
	}
	PG_CATCH();
	{
		if (remote->state != REMOTE_CLOSED)
			remote_release(remote, false);
		PG_RE_THROW();
	}
	PG_END_TRY();
	remote_release(remote, false);
	ereport(LOG,
			(errmsg("coord: role \"%s\" forced \"%s\" at server \"%s\" to be %s: %s",
					GetUserNameFromId(GetUserId(), false), text, server, outcome, reason)));
	twophase_want_resolver(twophase_database(), 0);
	PG_RETURN_VOID();
}

/* ----------------------------------------------------------------
 *		coord.twophase_adopt()
 * ----------------------------------------------------------------
 */

/*
 * Mark the incarnation.  One that this database does not know of, as its row was lost
 * with the decisions, is known by what it left prepared.
 */
static void
mark_adopted(int incarnation, const char *reason)
{
	static Statement known = {
		"SELECT FROM coord_internal.twophase_incarnation WHERE id = $1", 1, {INT4OID}
	};
	static Statement doubt = {
		"SELECT FROM coord_internal.twophase_in_doubt"
		" WHERE pg_catalog.split_part(gid, ':', 4) = $1::pg_catalog.text", 1, {INT4OID}
	};
	static Statement insert = {
		"INSERT INTO coord_internal.twophase_incarnation"
		" (id, system_identifier, database, timeline, control_file, first_gtid, since)"
		" VALUES ($1, 0, 0, 0, '', 0, $2)",
		2, {INT4OID, TIMESTAMPTZOID}
	};
	static Statement mark = {
		"UPDATE coord_internal.twophase_incarnation SET adopted_at = $2, adopted_by = $3, reason = $4"
		" WHERE id = $1 AND adopted_at IS NULL",
		4, {INT4OID, TIMESTAMPTZOID, OIDOID, TEXTOID}
	};
	Oid			user = GetUserId();
	QueryScope	scope;
	Datum		values[4];
	bool		nulls[4] = {false};

	values[0] = Int32GetDatum(incarnation);
	values[1] = TimestampTzGetDatum(GetCurrentTimestamp());
	values[2] = ObjectIdGetDatum(user);
	nulls[3] = reason == NULL;
	values[3] = reason ? CStringGetTextDatum(reason) : (Datum) 0;
	query_begin(&scope);
	if (query_run(&known, values, NULL, 1) == 0)
	{
		if (query_run(&doubt, values, NULL, 1) == 0)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_OBJECT),
					 errmsg("incarnation %d does not exist", incarnation),
					 errhint("See coord.twophase_in_doubt.")));
		query_run(&insert, values, NULL, 0);
	}
	query_run(&mark, values, nulls, 0);
	query_end(&scope);
}

static const char *
server_name(Oid server)
{
	ForeignServer *foreign = GetForeignServerExtended(server, FSV_MISSING_OK);

	return foreign ? foreign->servername : "?";
}

/* coord.twophase_adopt(incarnation, reason) */
Datum
coord_twophase_adopt(PG_FUNCTION_ARGS)
{
	int			incarnation;
	char	   *reason = check_optional_text(fcinfo, 1);
	List	   *resolutions = NIL;
	ListCell   *cell;
	int64		finished = 0;

	check_required(fcinfo, 0, "incarnation");
	incarnation = PG_GETARG_INT32(0);
	repair_check("coord.twophase_adopt");
	if (incarnation == twophase_database()->incarnation)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("incarnation %d is the present one", incarnation),
				 errdetail("What it decides needs no adoption.")));
	resolve_take_turn();
	mark_adopted(incarnation, reason);
	repair_log("adopted", NULL, InvalidOid, NULL,
			   psprintf("incarnation %d%s%s", incarnation, reason ? ": " : "", reason ? reason : ""));
	(void) resolve(twophase_database(), InvalidOid, &resolutions);
	foreach(cell, resolutions)
	{
		Resolution *resolution = lfirst(cell);
		Gid			gid;

		if (resolution->gid == NULL)
			ereport(WARNING,
					(errmsg("server \"%s\" could not be asked: %s",
							server_name(resolution->server),
							resolution->detail ? resolution->detail : ""),
					 errhint("The resolver settles what is prepared there when it can be.")));
		else if (gid_read(resolution->gid, &gid) && gid.incarnation == incarnation &&
				 (strcmp(resolution->action, "committed") == 0 ||
				  strcmp(resolution->action, "rolled back") == 0))
			finished++;
	}
	ereport(LOG,
			(errmsg("coord: role \"%s\" adopted incarnation %d%s%s",
					GetUserNameFromId(GetUserId(), false), incarnation,
					reason ? ": " : "", reason ? reason : "")));
	PG_RETURN_INT64(finished);
}

/* ----------------------------------------------------------------
 *		coord.create_restore_point()
 * ----------------------------------------------------------------
 */

/* A participant that a restore point is to be made at. */
typedef struct RestoreTarget
{
	Oid			server;
	char	   *name;
	Remote	   *remote;
} RestoreTarget;

/* The servers that participants are at, in the current memory context. */
static RestoreTarget *
participating_servers(int *count)
{
	static Statement read = {
		"SELECT DISTINCT p.server FROM coord_internal.twophase_participant p"
		" JOIN pg_user_mapping m ON m.oid = p.mapping ORDER BY 1", 0, {0}
	};
	MemoryContext context = CurrentMemoryContext;
	QueryScope	scope;
	RestoreTarget *result;
	uint64		rows;

	query_begin(&scope);
	rows = query_run_latest(&read, NULL, NULL, 0);
	result = MemoryContextAllocZero(context, sizeof(RestoreTarget) * Max(rows, 1));
	for (uint64 i = 0; i < rows; i++)
	{
		bool		isnull;

		result[i].server = DatumGetObjectId(query_value(i, 1, &isnull));
	}
	query_end(&scope);
	*count = (int) rows;
	return result;
}

/*
 * A connection that may make a restore point there, or an error: nothing has been made
 * anywhere yet.
 */
static Remote *
find_restorer(const RestoreTarget *target)
{
	char	   *error = "there is no user mapping";
	ListCell   *cell;
	List	   *roles = repair_roles(target->server, true);

	foreach(cell, roles)
	{
		Remote	   *remote = repair_connect(lfirst_oid(cell), target->server, &error);
		PGresult   *result;

		if (remote == NULL)
			continue;
		result = repair_ask(remote,
							"SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN 'it is a standby'"
							" WHEN pg_catalog.current_setting('wal_level') = 'minimal' THEN 'its wal_level is minimal'"
							" WHEN NOT pg_catalog.has_function_privilege('pg_catalog.pg_create_restore_point(text)', 'EXECUTE')"
							" THEN pg_catalog.format('role %I has no privilege on pg_create_restore_point() there', current_user) END",
							NULL, &error);
		if (result != NULL && PQgetisnull(result, 0, 0))
			return remote;
		if (result != NULL)
			error = pstrdup(PQgetvalue(result, 0, 0));
		if (remote->state != REMOTE_CLOSED)
			remote_release(remote, false);
	}
	ereport(ERROR,
			(errcode(ERRCODE_COORD_PARTICIPANT_FAILED),
			 errmsg("no restore point can be made at server \"%s\"", target->name),
			 errdetail("%s; none was made anywhere.", error),
			 errhint("coord.twophase_check() says more. A server that is no longer needed can be dropped.")));
}

/* Names of the targets before "end"; NULL: none. */
static char *
target_names(const RestoreTarget *targets, int end)
{
	char	   *result = NULL;

	for (int i = 0; i < end; i++)
		result = result ? psprintf("%s, \"%s\"", result, targets[i].name) :
			psprintf("\"%s\"", targets[i].name);
	return result;
}

/*
 * No decision is committed while the points are made: what a participant has committed
 * before its point was decided before all of them, and is in the coordinator's image
 * of that time.  What is prepared in a participant's image is committed there if the
 * decision is in the coordinator's, which recovery does by itself.
 */
static XLogRecPtr
make_restore_points(RestoreTarget *targets, int count, const char *label)
{
	Oid			decisions = get_relname_relid("twophase_decision",
											  get_namespace_oid("coord_internal", false));
	char	   *error = NULL;
	XLogRecPtr	result;

	LockRelationOid(decisions, ShareLock);
	for (int i = 0; i < count; i++)
	{
		char	   *made = target_names(targets, i);

		if (repair_ask(targets[i].remote, "SELECT pg_catalog.pg_create_restore_point($1)", label,
					   &error) != NULL)
			continue;
		ereport(ERROR,
				(errcode(ERRCODE_COORD_PARTICIPANT_FAILED),
				 errmsg("no restore point was made at server \"%s\"", targets[i].name),
				 made ? errdetail("%s. One of this label has been made at %s, and is of no use.",
								  error, made) :
				 errdetail("%s; none was made anywhere else.", error),
				 errhint("Try again with another label.")));
	}
	result = DatumGetLSN(DirectFunctionCall1(pg_create_restore_point,
											 CStringGetTextDatum(label)));
	UnlockRelationOid(decisions, ShareLock);
	return result;
}

/* Connect to all servers first, so that what cannot be done is not begun. */
static XLogRecPtr
make_everywhere(RestoreTarget *targets, int count, const char *label)
{
	for (int i = 0; i < count; i++)
	{
		targets[i].name = pstrdup(GetForeignServer(targets[i].server)->servername);
		targets[i].remote = find_restorer(&targets[i]);
	}
	return make_restore_points(targets, count, label);
}

static void
release_targets(RestoreTarget *targets, int count)
{
	for (int i = 0; i < count; i++)
	{
		if (targets[i].remote != NULL && targets[i].remote->state != REMOTE_CLOSED)
			remote_release(targets[i].remote, false);
	}
}

/* coord.create_restore_point(label) */
Datum
coord_create_restore_point(PG_FUNCTION_ARGS)
{
	char	   *label = required_reason(fcinfo, 0, "label");
	RestoreTarget *targets;
	int			count;
	volatile XLogRecPtr result = InvalidXLogRecPtr;

	repair_check("coord.create_restore_point");
	if (strlen(label) >= MAXFNAMELEN)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("label is too long"),
				 errdetail("It has %zu bytes, %d are allowed.", strlen(label), MAXFNAMELEN - 1)));
	if (!XLogIsNeeded())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("WAL level not sufficient for creating a restore point"),
				 errhint("wal_level must be set to \"replica\" or \"logical\" at server start.")));
	targets = participating_servers(&count);
	PG_TRY();
	{
		result = make_everywhere(targets, count, label);
	}
	PG_FINALLY();
	{
		release_targets(targets, count);
	}
	PG_END_TRY();
	repair_log("restore_point", NULL, InvalidOid, NULL, label);
	PG_RETURN_LSN(result);
}
