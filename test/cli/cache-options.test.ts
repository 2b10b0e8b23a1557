import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { asJson, asText, checkHoldingsOptions } from '../../lib/cli/cache-options.ts'
import { throwsFault } from '../expect.ts'

const test = suite('cli/cache-options')

const holdings = [
  { id: 'web-1', state: 'sealed', pinned: false, count: 12, bytes: 3 * 2 ** 30, shared: 0, seconds: 3600 },
  { id: 'c', state: 'chain', pinned: true, count: 1, bytes: 0, shared: 0, seconds: 0 },
  { id: 'db', state: 'undecided', pinned: false, count: 1, bytes: 512, shared: 8192, seconds: 7 },
] as const

test('a line each, in columns', () => {
  assert.is(
    asText({ total: 5, holdings }),
    `web-1  sealed, 12 images               3.00 GiB                   3600 s
c      chain of 1 round, pinned        0 B                        0 s
db     waits for its verdict, 1 image  512 B and 8.00 KiB shared  7 s
and 2 more
`,
  )
  assert.is(asText({ total: 0, holdings: [] }), '')
})

test('one JSON object with its version', () => {
  assert.equal(JSON.parse(asJson({ total: 3, holdings })), {
    version: 2,
    total: 3,
    snapshots: [
      { id: 'web-1', state: 'sealed', pinned: false, images: 12, bytes: 3 * 2 ** 30, shared: 0, seconds: 3600 },
      { id: 'c', state: 'chain', pinned: true, rounds: 1, bytes: 0, shared: 0, seconds: 0 },
      { id: 'db', state: 'undecided', pinned: false, images: 1, bytes: 512, shared: 8192, seconds: 7 },
    ],
  })
})

test('what does not go together', () => {
  const none = { ls: false, json: false, keep: false, dedup: false, 'release-early': false }
  assert.equal(checkHoldingsOptions({ ...none, keep: true }), { keep: true, dedup: false, releaseEarly: false })
  assert.equal(checkHoldingsOptions({ ...none, 'release-early': true }), {
    keep: false,
    dedup: false,
    releaseEarly: true,
  })
  for (const values of [
    { ls: true, rm: 'x' },
    { rm: 'x', drop: 'x' },
    { ls: true, 'let-run': 'x' },
    { pin: 'x', unpin: 'x' },
    { pin: 'x', rm: 'x' },
    { unpin: 'x', ls: true },
    { json: true },
    { keep: true, 'release-early': true },
  ]) {
    throwsFault('USAGE', () => checkHoldingsOptions({ ...none, ...values }), JSON.stringify(values))
  }
})

test.run()
