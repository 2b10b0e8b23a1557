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
  const documented = {
    1: ['IO', 'EXISTS', 'MISSING', 'MEMORY', 'REFUSED', 'ABORTED'],
    2: ['USAGE'],
    3: ['LINK'],
    4: ['TRUNCATED', 'TRAILING', 'FORMAT', 'VERSION', 'NAME', 'LIMIT', 'DIGEST', 'FAILED_DUMP'],
    5: ['CRIU', 'CRIU_PROTOCOL'],
    6: ['TIMEOUT'],
  }
  const entries = Object.entries(documented).flatMap(([exit, codes]) => codes.map((code) => [code, Number(exit)]))
  assert.equal(exitCodes, Object.fromEntries(entries))
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
