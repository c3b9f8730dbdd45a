#!/usr/bin/env python3
"""A payment worker.  Connects as libpq does (PGHOST, PGUSER, PGDATABASE, ...)."""
import os
import signal
import sys
import time

import psycopg
from psycopg.rows import namedtuple_row

CLAIM = """
  SELECT task_id, token, phase, null_compensation, idempotency_key AS key,
         regexp_replace(idempotency_key, '/compensation$', '') AS charge_key,
         payload #>> '{input,amount}' AS amount
  FROM coord.task_claim('payments', worker => %s, lease => '1 min', timeout => '5 s')"""
COMPLETE = "SELECT coord.task_complete(%s, %s, jsonb_build_object('payment', %s::text))"
FAIL = "SELECT coord.task_fail(%s, %s, %s, retryable => %s, retry_in => '10 s')"
GONE = {'ZC001': 'another worker has it now', 'ZC011': 'its saga was cancelled'}

def connect(**options):
    # PgBouncer's transaction mode cannot rely on prepared statements.
    return psycopg.connect(autocommit=True, prepare_threshold=None, row_factory=namedtuple_row, **options)

def pay(task):
    """Outside of coord's database, so it may happen twice: the key makes that harmless."""
    with connect(dbname='provider') as provider:
        if task.phase == 'action':
            provider.execute('CALL charge_card(%s, %s)', (task.key, task.amount))
        elif not task.null_compensation:    # else nobody can have charged
            provider.execute('CALL refund_card(%s, %s)', (task.key, task.charge_key))

def work(db, task):
    try:
        pay(task)
    except psycopg.Error as error:
        refused = isinstance(error, psycopg.errors.RaiseException)    # and will be again
        db.execute(FAIL, (task.task_id, task.token, str(error), not refused))
        return
    with db.transaction():    # the outcome and what we write ourselves: both or none
        if db.execute(COMPLETE, (task.task_id, task.token, task.key)).fetchone()[0]:
            db.execute('INSERT INTO shop.booking VALUES (%s)', (task.key,))

stopping = []
signal.signal(signal.SIGTERM, lambda number, frame: stopping.append(number))
while not stopping:
    try:
        with connect() as db:
            while not stopping:
                for task in db.execute(CLAIM, (f'python {os.getpid()}',)).fetchall():
                    try:
                        work(db, task)
                    except psycopg.Error as error:
                        if error.sqlstate not in GONE:
                            raise
                        print(task.key, GONE[error.sqlstate], file=sys.stderr, flush=True)
    except psycopg.OperationalError as error:    # the server is away: the lease brings the task back
        print(error, file=sys.stderr, flush=True)
        time.sleep(1)
