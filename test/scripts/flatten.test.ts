import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { PAGE_BYTES, pageFlag } from '../../lib/format/pagemap.ts'
import { chains, pagemapOf, pagesByAddress, splitDump } from '../support/chains.ts'
import { eventually, fixtures, giveFolders, type InFolder, run, shell, start } from '../support/run.ts'

const test = suite<InFolder>('scripts/flatten')

giveFolders(test)

const images = join(fixtures, 'images')

test('the last dump of a chain becomes a directory without a parent, private, and nothing is said', async ({
  folder,
}) => {
  const [recorded] = chains()
  const last = recorded?.directories.at(-1) ?? ''
  const ran = await run('flatten', ['-D', last, '--to-dir', 'full'], { cwd: folder })
  assert.is(ran.code, 0, ran.stderr)
  assert.is(ran.stdout.length + ran.stderr.length, 0)
  assert.equal(readdirSync(folder), ['full'])
  const full = join(folder, 'full')
  assert.is(statSync(full).mode & 0o777, 0o700)
  const names = readdirSync(last).filter((name) => name !== 'parent')
  assert.equal(readdirSync(full).sort(), names.sort())
  for (const name of names) assert.is(statSync(join(full, name)).mode & 0o777, 0o600, name)
  for (const name of names.filter((image) => image.startsWith('pagemap-'))) {
    assert.equal(pagesByAddress(full, name), pagesByAddress(last, name), name)
  }
})

test('-v says how many layers there were; dump-to-stdout --from-dir streams the same', async ({ folder }) => {
  const last = splitDump(images, join(folder, 'rounds'), ['4.2', '4.1', '4.2'])
  const line =
    `flatten -v -D ${last} --to-dir a && dump-to-stdout --from-dir ${last} | restore-from-socket ` +
    `--to-dir b && diff -r a b`
  const ran = await shell(line, { cwd: folder })
  assert.is(ran.code, 0, ran.stderr + ran.stdout)
  assert.match(ran.stderr, /^flatten: flattened 3 layers: 12 images, \d+ KiB in [\d.]+ s \([^)]+\)\n$/)
})

test('parents in a circle: one line, its own exit code, and nothing is left', async ({ folder }) => {
  const last = splitDump(images, join(folder, 'rounds'), ['4.2', '4.2', '4.1'])
  symlinkSync('../2', join(folder, 'rounds', '1', 'parent'))
  const ran = await run('flatten', ['-D', last, '--to-dir', 'full'], { cwd: folder })
  assert.is(ran.code, 4)
  assert.match(ran.stderr, /^flatten: error: the parents of \S+\/3 lead in a circle: \S+\/2 comes twice\n$/)
  assert.equal(readdirSync(folder), ['rounds'])
})

test('a target that has something in it is refused, and stays', async ({ folder }) => {
  mkdirSync(join(folder, 'full'))
  writeFileSync(join(folder, 'full', 'precious'), 'x')
  const refused = await run('flatten', ['-D', images, '--to-dir', 'full'], { cwd: folder })
  assert.is(refused.code, 1)
  assert.match(refused.stderr, /full is there already and is not an empty directory\nflatten: hint: /)
  assert.equal(readdirSync(join(folder, 'full')), ['precious'])
  assert.equal(readdirSync(folder), ['full'])
})

test('a file that cannot grow: a line, and nothing is left', async ({ folder }) => {
  const ran = await shell(`ulimit -f 64; exec flatten -D ${images} --to-dir full`, { cwd: folder })
  assert.is(ran.code, 1, ran.stderr)
  assert.match(ran.stderr, /^flatten: error: full\/pages-1\.img: EFBIG\n$/)
  assert.equal(readdirSync(folder), [])
})

test('SIGTERM in the middle: 143, and nothing is left', async ({ folder }) => {
  // So much that it cannot be done before: 64 GiB of a file without blocks.
  const pages = 2 ** 24
  mkdirSync(join(folder, 'dump'))
  const entry = { vaddr: 0, pages, flags: pageFlag.present }
  writeFileSync(join(folder, 'dump', 'pagemap-7.img'), pagemapOf('4.2', 1, [entry]))
  writeFileSync(join(folder, 'dump', 'pages-1.img'), '')
  truncateSync(join(folder, 'dump', 'pages-1.img'), pages * PAGE_BYTES)
  writeFileSync(join(folder, 'dump', 'inventory.img'), readFileSync(join(images, 'inventory.img')))
  const flattening = start('flatten', ['-D', 'dump', '--to-dir', 'full'], { cwd: folder })
  const begun = (): string | undefined =>
    readdirSync(folder).find((name) => name !== 'dump' && existsSync(join(folder, name, 'pages-1.img')))
  await eventually(begun, 'its first page')
  const ran = await flattening.stop()
  assert.is(ran.code, 143, ran.stderr)
  assert.is(ran.stderr, 'flatten: error: stopped by SIGTERM\n')
  assert.equal(readdirSync(folder), ['dump'])
})

test.run()
