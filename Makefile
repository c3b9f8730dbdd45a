# coord: a PostgreSQL extension.  "make && make install" with PGXS; the suites
# are run by scripts/test, which stages an installation of its own.

PG_CONFIG ?= pg_config
MODULE_big = coord
EXTENSION = coord
EXTVERSION = 1.0

OBJS = $(patsubst %.c,%.o,$(sort $(wildcard src/*.c src/*/*.c)))
SQL_PIECES = sql/begin.sql sql/base.sql sql/saga.sql sql/task.sql sql/saga_views.sql \
	sql/task_views.sql sql/lock.sql sql/twophase.sql sql/event.sql sql/subscription.sql \
	sql/runtime.sql sql/comments.sql sql/end.sql
DATA_built = coord--$(EXTVERSION).sql

PG_CPPFLAGS = -I$(srcdir)/src -I$(shell $(PG_CONFIG) --includedir)
SHLIB_LINK = -lpq
PG_CFLAGS = -Wall -Wextra -Wno-unused-parameter -Wno-sign-compare \
	-Wno-missing-field-initializers
ifdef COORD_WERROR
PG_CFLAGS += -Werror
endif
# Fault and wait points for the tests: coord.debug_point.
ifdef COORD_DEBUG_POINTS
PG_CFLAGS += -DCOORD_DEBUG_POINTS
endif
ifdef COORD_ASSERT
PG_CFLAGS += -DUSE_ASSERT_CHECKING
endif

EXTRA_CLEAN = coord--$(EXTVERSION).sql

REGRESS = $(sort $(patsubst test/sql/%.sql,%,$(wildcard test/sql/*.sql)))
REGRESS_OPTS = --inputdir=test
ISOLATION = $(sort $(patsubst test/specs/%.spec,%,$(wildcard test/specs/*.spec)))
ISOLATION_OPTS = --inputdir=test
TAP_TESTS = 1
PROVE_TESTS = $(sort $(wildcard test/t/*.pl))

PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

# PGXS does not track headers.
$(OBJS): $(wildcard src/*.h src/*/*.h)

coord--$(EXTVERSION).sql: $(SQL_PIECES) Makefile
	cat $(SQL_PIECES) > $@
