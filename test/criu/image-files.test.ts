import { readdirSync, readFileSync, statSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { lostByStream, writeImageFiles } from '../../lib/criu/image-files.ts'
import { Pool } from '../../lib/store/pool.ts'
import { rejectsFault } from '../expect.ts'
import { stored } from '../support/stored.ts'

const test = suite('criu/image-files')
const MIB = 2 ** 20
const signal = new AbortController().signal

test('rules of nftables and a user namespace need files; images without content and other names do not', async () => {
  const lost = async (images: Record<string, Buffer>) => lostByStream((await stored(new Pool(16 * MIB), images)).images)
  assert.is(await lost({ 'nftables-9.img': Buffer.from('table inet t') }), 'firewall rules (nftables)')
  assert.is(await lost({ 'userns-10.img': Buffer.from('x') }), 'a user namespace')
  assert.is(await lost({ 'nftables-9.img': Buffer.alloc(0), 'mm-1.img': Buffer.from('no mm') }), undefined)
  assert.is(await lost({ 'x-nftables-9.img': Buffer.from('x'), 'inventory.img': Buffer.from('x') }), undefined)
})

test('the files have every byte, lie in a private directory, can be read below it, and go', async () => {
  const pool = new Pool(64 * MIB)
  const images = {
    'pages-1.img': Buffer.alloc(5 * MIB + 17, 'pages'),
    'core-1.img': Buffer.from('core'),
    'empty.img': Buffer.alloc(0),
  }
  const snapshot = await stored(pool, images)
  const before = pool.used
  const files = await writeImageFiles(snapshot.images, pool, signal)
  assert.equal(readdirSync(files.path).sort(), Object.keys(images).sort())
  for (const [name, bytes] of Object.entries(images)) {
    assert.ok(readFileSync(join(files.path, name)).equals(bytes), name)
    assert.is(statSync(join(files.path, name)).mode & 0o777, 0o644)
  }
  assert.is(statSync(files.path).mode & 0o777, 0o755)
  assert.is(statSync(dirname(files.path)).mode & 0o777, 0o700)
  // A tmpfs takes whole pages.
  assert.is(pool.used - before, 5 * MIB + 2 * 4096)
  files.remove()
  files.remove()
  assert.is(pool.used, before)
  assert.is(statSync(dirname(files.path), { throwIfNoEntry: false }), undefined)
})

test('without memory for them, or after a signal, nothing is left', async () => {
  const pool = new Pool(12 * MIB)
  const snapshot = await stored(pool, { 'pages-1.img': Buffer.alloc(7 * MIB, 1) })
  const before = pool.used
  const left = (): string[] =>
    ['/run', '/dev/shm'].flatMap((path) =>
      readdirSync(path).filter((name) => name.startsWith(`criu-ferry.${process.pid}.`)),
    )
  await rejectsFault('MEMORY', writeImageFiles(snapshot.images, pool, signal))
  const reason = new Error('stopped')
  const stopped = await writeImageFiles(snapshot.images, new Pool(64 * MIB), AbortSignal.abort(reason)).catch(
    (error) => error,
  )
  assert.is(stopped, reason)
  assert.is(pool.used, before)
  assert.equal(left(), [])
})

test.run()
