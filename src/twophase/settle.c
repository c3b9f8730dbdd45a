/*-------------------------------------------------------------------------
 *
 * settle.c
 *	  What an earlier incarnation left prepared, once it is adopted.
 *
 * What that one decided may be lost.  What is left is what the participants say:
 *
 * 1. All parts are still prepared: none has committed, so all are rolled back.
 * 2. Some are not: the name of each that is has the next participant's transaction
 *	  id, see gid.c.  If that one committed, so did the whole; if it was rolled back, the
 *	  whole was.
 * 3. A part was ended so before, by an operator or by us: the others are, too.
 * 4. Else nobody can know, and it stays in doubt.
 *
 * A participant that cannot be reached now is one whose part is not known to be
 * prepared; 2. then asks its neighbour, and says nothing else than it would say later.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "foreign/foreign.h"

#include "twophase/repair.h"

typedef enum Outcome
{
	OUTCOME_UNKNOWN,
	OUTCOME_COMMITTED,
	OUTCOME_ABORTED
} Outcome;

/* Are they parts of one transaction? */
static bool
is_same(const Prepared *a, const Prepared *b)
{
	return a->gid.incarnation == b->gid.incarnation && a->gid.gtid == b->gid.gtid;
}

/* Is this part of the transaction of "of" prepared? */
static bool
is_prepared(const Prepared *prepared, int count, const Prepared *of, int number)
{
	for (int i = 0; i < count; i++)
	{
		if (is_same(&prepared[i], of) && prepared[i].gid.number == number)
			return true;
	}
	return false;
}

/* What became of a transaction id at a server. */
static Outcome
ask_status(Oid server, uint64 xid)
{
	List	   *roles;
	ListCell   *cell;
	Outcome		result = OUTCOME_UNKNOWN;
	char		value[32];

	if (xid == 0 || GetForeignServerExtended(server, FSV_MISSING_OK) == NULL)
		return OUTCOME_UNKNOWN;
	snprintf(value, sizeof(value), UINT64_FORMAT, xid);
	roles = repair_roles(server, false);
	foreach(cell, roles)
	{
		char	   *error;
		Remote	   *remote = repair_connect(lfirst_oid(cell), server, &error);
		PGresult   *answer;

		if (remote == NULL)
			continue;
		answer = repair_ask(remote,
							"SELECT pg_catalog.pg_xact_status($1::pg_catalog.text::pg_catalog.xid8)"
							" WHERE NOT pg_catalog.pg_is_in_recovery()", value, &error);
		if (answer != NULL && PQntuples(answer) == 1 && !PQgetisnull(answer, 0, 0))
		{
			if (strcmp(PQgetvalue(answer, 0, 0), "committed") == 0)
				result = OUTCOME_COMMITTED;
			else if (strcmp(PQgetvalue(answer, 0, 0), "aborted") == 0)
				result = OUTCOME_ABORTED;
		}
		if (remote->state != REMOTE_CLOSED)
			remote_release(remote, false);
		if (answer != NULL)
			break;
	}
	return result;
}

/* How must the transaction of "of" end?  See the head of this file. */
static Outcome
find_outcome(const Prepared *prepared, int count, const Prepared *of, int *missing)
{
	char	   *noted = repair_noted_outcome(of->text);
	Outcome		result = OUTCOME_UNKNOWN;

	if (noted != NULL)
		return strcmp(noted, "committed") == 0 ? OUTCOME_COMMITTED : OUTCOME_ABORTED;
	*missing = 0;
	for (int number = 1; number <= of->gid.count; number++)
		*missing += is_prepared(prepared, count, of, number) ? 0 : 1;
	if (*missing == 0)
		return OUTCOME_ABORTED;
	for (int i = 0; i < count && result == OUTCOME_UNKNOWN; i++)
	{
		const Gid  *gid = &prepared[i].gid;

		if (is_same(&prepared[i], of) &&
			!is_prepared(prepared, count, of, gid->number % gid->count + 1))
			result = ask_status(gid->next_server, gid->next_xid);
	}
	return result;
}

/* End one part. */
static void
finish(Prepared *part, bool commit)
{
	const char *tag = commit ? "COMMIT PREPARED" : "ROLLBACK PREPARED";
	char	   *error = NULL;
	Remote	   *remote = repair_connect(part->role, part->server, &error);

	if (remote != NULL && repair_ask(remote, psprintf("%s '%s'", tag, part->text), NULL, &error) != NULL)
		part->settled = true;
	else
		part->reason = psprintf("adopted, and to be %s, but: %s", commit ? "committed" : "rolled back",
								error);
	if (remote != NULL && remote->state != REMOTE_CLOSED)
		remote_release(remote, false);
	part->committed = commit;
	if (part->settled)
		repair_log("adopted", part->text, part->server, commit ? "committed" : "aborted", NULL);
}

/*
 * End what can be ended of what is prepared under adopted incarnations; all that is,
 * and each part as often as it was seen.  Requires a transaction.
 */
void
settle(Prepared *prepared, int count)
{
	bool	   *seen = palloc0(sizeof(bool) * Max(count, 1));

	for (int i = 0; i < count; i++)
	{
		int			missing = 0;
		Outcome		outcome;

		if (seen[i])
			continue;
		outcome = find_outcome(prepared, count, &prepared[i], &missing);
		for (int j = i; j < count; j++)
		{
			Prepared   *part = &prepared[j];

			if (!is_same(part, &prepared[i]))
				continue;
			seen[j] = true;
			if (outcome == OUTCOME_UNKNOWN)
				part->reason = psprintf("adopted, but %d of its %d parts are not known to be prepared any more, and nobody can tell whether they were committed; see coord.twophase_force()",
										missing, part->gid.count);
			else if (!part->mine)
				part->reason = "adopted, but as the role that prepared it there no user mapping connects";
			else
				finish(part, outcome == OUTCOME_COMMITTED);
		}
	}
}
