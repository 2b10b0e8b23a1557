import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { asJson, asText } from '../../lib/cli/holdings-list.ts'

const test = suite('cli/holdings-list')

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

test.run()
