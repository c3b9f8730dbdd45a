/*-------------------------------------------------------------------------
 *
 * transition.h
 *	  State machines as tables, and their one interpreter.
 *
 *-------------------------------------------------------------------------
 */
#ifndef COORD_TRANSITION_H
#define COORD_TRANSITION_H

#include "postgres.h"

typedef struct Transition
{
	int			from;
	int			event;
	int			to;
	const char *why;
} Transition;

typedef struct StateMachine
{
	const char *name;
	const char *const *states;	/* names, indexed by state, NULL at the end */
	const char *const *events;	/* names, indexed by event, NULL at the end */
	const Transition *transitions;
	int			ntransitions;
} StateMachine;

extern void machine_register(const StateMachine *machine);
extern int	machine_next(const StateMachine *machine, int from, int event);
extern bool machine_allows(const StateMachine *machine, int from, int event);
extern int	machine_state(const StateMachine *machine, const char *name);

#endif							/* COORD_TRANSITION_H */
