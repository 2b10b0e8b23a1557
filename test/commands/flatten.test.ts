import { mkdirSync, readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { flattenDirectory } from '../../lib/commands/flatten.ts'
import { Fault, type FaultCode } from '../../lib/fault.ts'
import type { Progress } from '../../lib/progress.ts'
import { rejectsFault } from '../expect.ts'
import { openFds } from '../kernel/fds.ts'
import { splitDump } from '../support/chains.ts'
import { fixtures, giveFolders, type InFolder } from '../support/run.ts'

const test = suite<InFolder>('commands/flatten')

giveFolders(test)

const images = join(fixtures, 'images')
const { signal } = new AbortController()
const silent = { report: (): void => {}, signal }

test('what is reported is what was written; flattened again it is the same', async ({ folder }) => {
  const last = splitDump(images, join(folder, 'rounds'), ['4.2', '4.1', '4.2'])
  const said: Progress[] = []
  const [a, b] = [join(folder, 'a'), join(folder, 'b')]
  await flattenDirectory(last, a, { report: (progress) => void said.push(progress), signal })
  const names = readdirSync(a)
  const bytes = names.reduce((sum, name) => sum + readFileSync(join(a, name)).length, 0)
  const [told] = said
  assert.ok(told?.event === 'flattened' && said.length === 1)
  assert.equal([told.layers, told.images, told.bytes], [3, names.length, bytes])
  mkdirSync(b)
  await flattenDirectory(a, b, silent)
  for (const name of names) assert.ok(readFileSync(join(a, name)).equals(readFileSync(join(b, name))), name)
})

const failures: [what: string, code: FaultCode, message: RegExp, spoil: (rounds: string) => void][] = [
  ['no directory', 'MISSING', /\/3 \(ENOENT\)/, (rounds) => rmSync(rounds, { recursive: true })],
  [
    'a parent that leads nowhere',
    'MISSING',
    /the parent of \S+\/2, \.\.\/1, cannot be read/,
    (rounds) => rmSync(join(rounds, '1'), { recursive: true }),
  ],
  [
    'a page that no parent has',
    'MISSING',
    /pagemap-18177\.img: the page at 0x[0-9a-f]+ is said/,
    (rounds) => rmSync(join(rounds, '1', 'pagemap-18177.img')),
  ],
  [
    'pages that are cut off',
    'FORMAT',
    /1\/pages-1\.img is cut off/,
    (rounds) => truncateSync(join(rounds, '1', 'pages-1.img'), 5000),
  ],
  [
    'a newer version',
    'FORMAT',
    /3\/inventory\.img: images of version 3/,
    (rounds) => writeFileSync(join(rounds, '3', 'inventory.img'), Buffer.from('16313158020000000803', 'hex')),
  ],
  [
    'pages that are in the directory of a page server',
    'FAILED_DUMP',
    /there is no pagemap-18177\.img in \S+\/3: pages of this dump went elsewhere/,
    (rounds) => rmSync(join(rounds, '3', 'pagemap-18177.img')),
  ],
  ['no inventory', 'FAILED_DUMP', /no inventory\.img in/, (rounds) => rmSync(join(rounds, '3', 'inventory.img'))],
]
for (const [what, code, message, spoil] of failures) {
  test(`${what}: a Fault, and nothing is left`, async ({ folder }) => {
    splitDump(images, join(folder, 'rounds'), ['4.2', '4.2', '4.1'])
    spoil(join(folder, 'rounds'))
    const before = [readdirSync(folder), openFds()]
    const fault = await rejectsFault(code, flattenDirectory(join(folder, 'rounds', '3'), join(folder, 'full'), silent))
    assert.match(fault.message, message)
    assert.equal([readdirSync(folder), openFds()], before)
  })
}

test('itself is no target, and stays', async ({ folder }) => {
  const last = splitDump(images, join(folder, 'rounds'), ['4.2', '4.2'])
  const before = readdirSync(folder, { recursive: true }).sort()
  await rejectsFault('EXISTS', flattenDirectory(last, last, silent))
  assert.equal(readdirSync(folder, { recursive: true }).sort(), before)
})

test('a signal before the end is the reason, and nothing is left', async ({ folder }) => {
  const stop = new AbortController()
  stop.abort(new Fault('ABORTED', 'stopped'))
  const flattening = flattenDirectory(images, join(folder, 'full'), { ...silent, signal: stop.signal })
  await rejectsFault('ABORTED', flattening)
  assert.equal(readdirSync(folder), [])
})

test.run()
