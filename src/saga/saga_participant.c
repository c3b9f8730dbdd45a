/*-------------------------------------------------------------------------
 *
 * saga_participant.c
 *	  Sagas that carry the participants of an application's two-phase commit.
 *
 * A participant's three functions, or its tasks of a queue, are a saga of three steps:
 * "prepare", whose compensation is its abort; "decision", a signal and the pivot; and
 * "commit".  So a participant has all that sagas have: a transaction of its own for
 * each call, leases and tokens, null compensations, retries without end behind the
 * pivot, memory of crashes.  What is different:
 *
 * 1. An attempt at "prepare" that says no is not followed by another; one that fails
 *	  for a reason that passes by itself is, until the coordinator's time is up.
 * 2. "commit" and the abort are tried until they succeed, whatever the error.
 * 3. Nobody but the coordinator tells it what was decided: see would_decide_alone() in
 *	  saga_verbs.c.
 *
 * The coordinator is twophase_app.c; what it needs is in saga.h.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "utils/builtins.h"

#include "base/access.h"
#include "base/query.h"
#include "saga/saga_task.h"

#define DECISION "decision"

static void
write_step(JsonWriter *writer, const char *name, const char *action, const char *compensation,
		   const char *queue)
{
	json_begin_object(writer);
	json_key(writer, "name");
	json_string(writer, name);
	json_key(writer, "action");
	json_string(writer, action);
	if (compensation != NULL)
	{
		json_key(writer, "compensation");
		json_string(writer, compensation);
	}
	if (queue != NULL)
	{
		json_key(writer, "queue");
		json_string(writer, queue);
	}
	json_key(writer, "retry_delay");
	json_string(writer, "100 ms");
	json_key(writer, "retry_max_delay");
	json_string(writer, "1 min");
	json_end_object(writer);
}

/*
 * The definition of participants that are these functions, or these labels of this
 * queue's tasks; made when there is none.  Functions are resolved and checked as the
 * current user's.
 */
int64
saga_participant_define(const char *prepare, const char *commit, const char *undo,
						const char *queue)
{
	const char *texts[] = {prepare, commit, undo, queue};
	JsonWriter	writer = {0};
	uint64		hash = 0;

	for (int i = 0; i < lengthof(texts); i++)
	{
		const char *text = texts[i] ? texts[i] : "";

		hash = hash_combine64(hash, hash_bytes_extended((const unsigned char *) text,
														(int) strlen(text), i));
	}
	json_begin_object(&writer);
	json_key(&writer, "participant");
	json_bool(&writer, true);
	json_key(&writer, "steps");
	json_begin_array(&writer);
	write_step(&writer, "prepare", prepare, undo, queue);
	json_begin_object(&writer);
	json_key(&writer, "name");
	json_string(&writer, DECISION);
	json_key(&writer, "signal");
	json_string(&writer, DECISION);
	json_end_object(&writer);
	if (commit != NULL)
		write_step(&writer, "commit", commit, NULL, queue);
	json_end_array(&writer);
	json_end_object(&writer);
	if (queue != NULL)
		queue_use(queue, GetUserId());
	access_note_role(GetUserId());
	return saga_define_participant(psprintf("twophase/%u/%016llx", GetUserId(),
											(unsigned long long) hash),
								   json_finish(&writer));
}

/* Begin to prepare a participant, as "owner"; the saga that carries it. */
int64
saga_participant_start(int64 definition, Oid owner, int64 gtid, const char *participant,
					   Jsonb *payload, pg_uuid_t *correlation_id)
{
	StartOptions options = {0};
	JsonWriter	writer = {0};
	bool		existing;

	json_begin_object(&writer);
	json_key(&writer, "gtid");
	json_integer(&writer, gtid);
	json_key(&writer, "participant");
	json_string(&writer, participant);
	if (payload != NULL)
	{
		json_key(&writer, "payload");
		json_value(&writer, payload);
	}
	json_end_object(&writer);
	options.name = "";
	options.definition = definition;
	options.owner = owner;
	options.input = json_finish(&writer);
	options.correlation_id = correlation_id;
	options.on_existing = "return";
	return saga_start(&options, &existing);
}

/*
 * What participants have said so far; "reasons" are those of who said no, in the
 * current memory context.
 */
void
saga_participant_votes(const int64 *ids, int count, SagaVote *votes, char **reasons)
{
	static Statement read = {
		"SELECT u.n::int4, s.id IS NULL OR s.backward OR s.status = 'suspended',"
		" t.status = 'completed', coalesce(s.error, a.error)"
		" FROM unnest($1) WITH ORDINALITY AS u(id, n)"
		" LEFT JOIN coord_internal.saga s ON s.id = u.id"
		" LEFT JOIN coord_internal.saga_step t ON t.saga_id = s.id AND t.ordinal = 0"
		" LEFT JOIN coord_internal.saga_archive a ON s.id IS NULL AND a.id = u.id",
		1, {INT8ARRAYOID}
	};
	MemoryContext context = CurrentMemoryContext;
	QueryScope	scope;
	Datum		value = query_int8_array(ids, count);
	uint64		rows;

	query_begin(&scope);
	rows = query_run_latest(&read, &value, NULL, 0);
	for (uint64 i = 0; i < rows; i++)
	{
		int			at = query_int4(i, 1) - 1;
		bool		isnull;

		reasons[at] = NULL;
		if (DatumGetBool(query_value(i, 2, &isnull)))
		{
			votes[at] = SAGA_VOTE_NO;
			reasons[at] = query_text(context, i, 4);
		}
		else if (DatumGetBool(query_value(i, 3, &isnull)) && !isnull)
			votes[at] = SAGA_VOTE_YES;
		else
			votes[at] = SAGA_VOTE_NONE;
	}
	query_end(&scope);
}

/* Which of these are not finished?  Returns how many, first in "ids". */
int
saga_participant_unfinished(int64 *ids, int count)
{
	static Statement read = {
		"SELECT id FROM coord_internal.saga WHERE id = ANY ($1) ORDER BY id", 1, {INT8ARRAYOID}
	};
	QueryScope	scope;
	Datum		value = query_int8_array(ids, count);
	uint64		rows;

	query_begin(&scope);
	rows = query_run_latest(&read, &value, NULL, 0);
	for (uint64 i = 0; i < rows; i++)
		ids[i] = query_int8(i, 1);
	query_end(&scope);
	return (int) rows;
}

/* It is decided, by the transaction that is open. */
void
saga_participant_decide(int64 id, bool commit, Oid role, const char *reason)
{
	if (commit)
		saga_send_signal(id, DECISION, role);
	else
		(void) saga_cancel_participant(id, role, reason);
}

/* ----------------------------------------------------------------
 *		What the participant is given
 * ----------------------------------------------------------------
 */

/* prepare, commit or abort */
const char *
saga_participant_phase(const Saga *saga, int ordinal, Phase phase)
{
	return phase == PHASE_COMPENSATION ? "abort" : saga->def->steps[ordinal].name;
}

int64
saga_participant_gtid(const Saga *saga)
{
	char	   *text = json_get_text(saga->input, "gtid");

	return text ? strtoi64(text, NULL, 10) : 0;
}

/* The same at each attempt: gtid/participant/phase. */
void
saga_participant_key(char *key, size_t size, const Saga *saga, int ordinal, Phase phase)
{
	snprintf(key, size, INT64_FORMAT "/%s/%s", saga_participant_gtid(saga),
			 json_get_text(saga->input, "participant"),
			 saga_participant_phase(saga, ordinal, phase));
}

/* The payload, with gtid, participant and idempotency_key. */
Jsonb *
saga_participant_document(const Saga *saga, const char *idempotency_key)
{
	JsonWriter	writer = {0};
	JsonbValue	value;

	json_begin_object(&writer);
	if (json_get(saga->input, "payload", &value) != NULL && value.type == jbvBinary)
	{
		JsonbIterator *iterator = JsonbIteratorInit(value.val.binary.data);
		JsonbIteratorToken token;

		while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
		{
			char	   *key;

			if (token != WJB_KEY)
				continue;
			key = pnstrdup(value.val.string.val, value.val.string.len);
			(void) JsonbIteratorNext(&iterator, &value, true);
			json_key(&writer, key);
			json_member(&writer, &value);
		}
	}
	json_key(&writer, "gtid");
	json_integer(&writer, saga_participant_gtid(saga));
	json_key(&writer, "participant");
	json_string(&writer, json_get_text(saga->input, "participant"));
	json_key(&writer, "idempotency_key");
	json_string(&writer, idempotency_key);
	json_end_object(&writer);
	return json_finish(&writer);
}
