/*-------------------------------------------------------------------------
 *
 * transition.c
 *	  State machines as tables, and their one interpreter.
 *
 * A capability declares its machine as an array of {from, event, to, why} and
 * asks here what an event does to a state.  A pair that the table does not
 * have is an error, so no state can be written that the table does not
 * justify; coord.state_machine() prints the same table, a regression test
 * pins it, and the picture in doc/ is drawn from it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/tuplestore.h"

#include "base/errors.h"
#include "base/transition.h"

#define MAX_MACHINES 16

/* Filled by _PG_init through machine_register(); constant afterwards. */
static const StateMachine *machines[MAX_MACHINES];
static int	nmachines = 0;

PG_FUNCTION_INFO_V1(coord_state_machine);

/* Make a machine known to coord.state_machine().  Called from _PG_init. */
void
machine_register(const StateMachine *machine)
{
	Assert(nmachines < MAX_MACHINES);
	machines[nmachines++] = machine;
}

static const Transition *
find_transition(const StateMachine *machine, int from, int event)
{
	for (int i = 0; i < machine->ntransitions; i++)
	{
		const Transition *t = &machine->transitions[i];

		if (t->from == from && t->event == event)
			return t;
	}
	return NULL;
}

/* Does the table have this pair? */
bool
machine_allows(const StateMachine *machine, int from, int event)
{
	return find_transition(machine, from, event) != NULL;
}

/*
 * The state that "event" leads to from "from".  Raises ZC006 when the table
 * has no such pair.
 */
int
machine_next(const StateMachine *machine, int from, int event)
{
	const Transition *t = find_transition(machine, from, event);

	if (t == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_COORD_ILLEGAL_TRANSITION),
				 errmsg("%s cannot go on \"%s\" from state \"%s\"",
						machine->name, machine->events[event],
						machine->states[from]),
				 errhint("coord.state_machine('%s') lists the legal transitions.",
						 machine->name)));
	return t->to;
}

/* The number of the state called "name", an XX000 error when there is none. */
int
machine_state(const StateMachine *machine, const char *name)
{
	for (int i = 0; machine->states[i] != NULL; i++)
	{
		if (strcmp(machine->states[i], name) == 0)
			return i;
	}
	elog(ERROR, "%s has no state \"%s\"", machine->name, name);
}

/*
 * coord.state_machine(name): the table of one machine.  An unknown or NULL
 * name is an error that lists the known ones.
 */
Datum
coord_state_machine(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	const StateMachine *machine = NULL;
	StringInfoData known;
	char	   *name;

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("name must not be null")));
	name = text_to_cstring(PG_GETARG_TEXT_PP(0));

	initStringInfo(&known);
	for (int i = 0; i < nmachines; i++)
	{
		if (strcmp(machines[i]->name, name) == 0)
			machine = machines[i];
		appendStringInfo(&known, "%s\"%s\"", i ? ", " : "", machines[i]->name);
	}
	if (machine == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("state machine \"%s\" does not exist", name),
				 errhint("State machines are %s.", known.data)));

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < machine->ntransitions; i++)
	{
		const Transition *t = &machine->transitions[i];
		Datum		values[4];
		bool		nulls[4] = {false, false, false, false};

		values[0] = CStringGetTextDatum(machine->states[t->from]);
		values[1] = CStringGetTextDatum(machine->events[t->event]);
		values[2] = CStringGetTextDatum(machine->states[t->to]);
		values[3] = CStringGetTextDatum(t->why);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}
