#!/usr/bin/env node
// A payment worker that does up to ten payments at a time.  Connects as libpq does
// (PGHOST, PGUSER, PGDATABASE, ...).
'use strict';
const { Pool } = require('pg');
const { setTimeout: sleep } = require('timers/promises');

const CLAIM = `
  SELECT task_id, token, phase, null_compensation, idempotency_key AS key,
         regexp_replace(idempotency_key, '/compensation$', '') AS charge_key,
         payload #>> '{input,amount}' AS amount
  FROM coord.task_claim('payments', max_tasks => 10, worker => $1, lease => '1 min', timeout => '5 s')`;
const COMPLETE = "SELECT coord.task_complete($1, $2, jsonb_build_object('payment', $3::text))";
const FAIL = "SELECT coord.task_fail($1, $2, $3, retryable => $4, retry_in => '10 s')";
const GONE = { ZC001: 'another worker has it now', ZC011: 'its saga was cancelled' };

// Queries without a name are not prepared, so PgBouncer's transaction mode will do.
const coord = new Pool();
const provider = new Pool({ database: 'provider', query_timeout: 30000 }); // less than the lease
for (const pool of [coord, provider]) pool.on('error', (error) => console.error(String(error)));

// Outside of coord's database, so it may happen twice: the key makes that harmless.
async function pay(task) {
  if (task.phase === 'action') {
    await provider.query('CALL charge_card($1, $2)', [task.key, task.amount]);
  } else if (!task.null_compensation) { // else nobody can have charged
    await provider.query('CALL refund_card($1, $2)', [task.key, task.charge_key]);
  }
}

async function work(task) {
  const lease = [task.task_id, task.token];
  try {
    const error = await pay(task).then(() => null, (e) => e);
    if (error === null) await coord.query(COMPLETE, [...lease, task.key]);
    else await coord.query(FAIL, [...lease, String(error), error.code !== 'P0001']); // P0001: refused
  } catch (error) { // if it was not reported, the end of the lease brings it back
    console.error(task.key, GONE[error.code] ?? String(error));
  }
}

async function main() {
  let stopping = false;
  process.on('SIGTERM', () => { stopping = true; });
  while (!stopping) {
    try {
      const tasks = (await coord.query(CLAIM, [`node ${process.pid}`])).rows;
      await Promise.all(tasks.map(work));
    } catch (error) { // the server is away
      console.error(String(error));
      await sleep(1000);
    }
  }
  await Promise.all([coord.end(), provider.end()]);
}

main();
