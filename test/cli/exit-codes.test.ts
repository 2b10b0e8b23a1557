import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { exitCodeHelp, exitCodes } from '../../lib/cli/exit-codes.ts'
import { root } from '../support/run.ts'

const test = suite('cli/exit-codes')

test('every code of a Fault has its exit code', () => {
  const source = readFileSync(join(root, 'lib', 'fault.ts'), 'utf8')
  const codes = [...source.matchAll(/^ {2}\| '([A-Z_]+)'/gm)].map(([, code]) => code)
  assert.ok(codes.length > 10)
  assert.equal(Object.keys(exitCodes).sort(), codes.sort())
})

test('exit codes are what is documented', () => {
  assert.equal(exitCodes, {
    USAGE: 2,
    LINK: 3,
    TRUNCATED: 4,
    TRAILING: 4,
    FORMAT: 4,
    VERSION: 4,
    NAME: 4,
    LIMIT: 4,
    DIGEST: 4,
    FAILED_DUMP: 4,
    CRIU: 5,
    CRIU_PROTOCOL: 5,
    TIMEOUT: 6,
    IO: 1,
    EXISTS: 1,
    MISSING: 1,
    MEMORY: 1,
    REFUSED: 1,
    ABORTED: 1,
  })
  for (const meaning of [
    '0 done',
    '1 failed',
    '2 wrong command line',
    '3 connection',
    '4 damaged',
    '5 criu',
    '6 timed out',
    '128\\+n',
  ]) {
    assert.match(exitCodeHelp, new RegExp(`(^|\\s)${meaning}`))
  }
  for (const code of Object.values(exitCodes)) assert.match(exitCodeHelp, new RegExp(`\\b${code} `))
})

test.run()
