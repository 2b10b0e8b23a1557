import {
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Fault } from '../../lib/fault.ts'
import { MOST_DATA } from '../../lib/format/frame.ts'
import { imageName } from '../../lib/format/names.ts'
import { check } from '../../lib/kernel/fd.ts'
import { mkfifo } from '../../lib/kernel/libc.ts'
import { DirectorySink } from '../../lib/store/directory-sink.ts'
import { directorySource } from '../../lib/store/directory-stage.ts'
import { MemorySnapshot } from '../../lib/store/memory.ts'
import { frameWriter } from '../../lib/stream/frames.ts'
import type { ImageSink, ImageSource } from '../../lib/stream/image.ts'
import { sendSnapshot } from '../../lib/stream/send.ts'
import { reasonOf, rejectsFault, throwsFault, turns, within } from '../expect.ts'
import { openFds } from '../kernel/fds.ts'
import { bytesOf, contents, id, image, pipeLinks, pool, receive, sourceOf } from '../stream/snapshots.ts'
import { temporary } from '../support/run.ts'

const test = suite<{ dir: string; target: string; remove: () => void }>('store/directory')

test.before.each((context) => {
  const { path, remove } = temporary()
  context.dir = path
  context.target = join(path, 'images')
  context.remove = remove
})
test.after.each((context) => context.remove())

const images = [0, 1, 4096, MOST_DATA, MOST_DATA + 1].map((size) => image(`pages-${size}.img`, size))
images.push(image('inventory.img', 60))

/** Sends from one to the other as the commands do. */
async function move(source: ImageSource, sink: ImageSink): Promise<string[]> {
  const { from, to } = pipeLinks()
  const sending = sendSnapshot(frameWriter(from.outlet), id, source).finally(() => from.destroy())
  const receiving = receive(to.inlet, sink).finally(() => to.destroy())
  await within(Promise.allSettled([sending, receiving]))
  await sending
  return (await receiving).images.map(({ name }) => name)
}

/** Everything below `dir`, hidden names too. */
function tree(dir: string): string[] {
  return readdirSync(dir, { recursive: true }).map(String).sort()
}

test('images are written private, and the directory has its name only when it is sealed', async ({ dir, target }) => {
  const before = openFds()
  const sink = new DirectorySink(target)
  await move(sourceOf(images), sink)
  assert.not(existsSync(target))
  const [partial = ''] = readdirSync(dir)
  assert.match(partial, /^\.images\.partial-\w+$/)
  assert.is(lstatSync(join(dir, partial)).mode & 0o777, 0o700)
  sink.seal()
  await sink.drop()
  assert.equal(readdirSync(dir), ['images'])
  assert.is(lstatSync(target).mode & 0o777, 0o700)
  assert.equal(readdirSync(target).sort(), images.map(({ name }) => name).sort())
  for (const { name, bytes } of images) {
    assert.ok(readFileSync(join(target, name)).equals(bytes), name)
    assert.is(lstatSync(join(target, name)).mode & 0o777, 0o600)
  }
  assert.is(openFds(), before, 'a descriptor is left')
})

test('a drop leaves nothing behind, in the middle of an image too', async ({ dir, target }) => {
  const before = openFds()
  const sink = new DirectorySink(target)
  const writer = await sink.open(imageName('pages-1.img'))
  writer.room(100).set(bytesOf('x', 100))
  await writer.wrote(100)
  await sink.open(imageName('core-1.img'))
  await sink.drop()
  assert.equal(readdirSync(dir), [])
  await sink.drop()
  await turns()
  assert.is(openFds(), before, 'a descriptor is left')
})

test('a damaged stream leaves nothing behind', async ({ dir, target }) => {
  const sink = new DirectorySink(target)
  await rejectsFault('CRIU', move(sourceOf(images.slice(0, 2), new Fault('CRIU', 'criu failed')), sink))
  await sink.drop()
  assert.equal(readdirSync(dir), [])
})

test('a target that exists is refused before anything is written, and stays', ({ dir, target }) => {
  mkdirSync(target)
  writeFileSync(join(target, 'precious'), 'x')
  writeFileSync(join(dir, 'file'), 'x')
  symlinkSync('nowhere', join(dir, 'link'))
  mkdirSync(join(dir, 'empty'))
  symlinkSync('empty', join(dir, 'link-to-empty'))
  const before = tree(dir)
  for (const name of ['images', 'file', 'link', 'link-to-empty']) {
    throwsFault('EXISTS', () => new DirectorySink(join(dir, name)), name)
  }
  assert.equal(tree(dir), before)
  assert.is(readFileSync(join(target, 'precious'), 'utf8'), 'x')
})

test('an empty directory at the target is replaced', async ({ dir, target }) => {
  mkdirSync(target, { mode: 0o755 })
  const sink = new DirectorySink(target)
  await move(sourceOf(images), sink)
  sink.seal()
  assert.equal(readdirSync(dir), ['images'])
  assert.is(readdirSync(target).length, images.length)
  assert.is(lstatSync(target).mode & 0o777, 0o700)
})

test('a target that appears meanwhile is not replaced', async ({ dir, target }) => {
  const sink = new DirectorySink(target)
  await move(sourceOf(images), sink)
  mkdirSync(target)
  writeFileSync(join(target, 'precious'), 'x')
  throwsFault('EXISTS', () => sink.seal())
  await sink.drop()
  assert.equal(tree(dir), ['images', 'images/precious'])
})

test('a place that cannot be written to is IO with a hint', ({ dir }) => {
  const fault = throwsFault('IO', () => new DirectorySink(join(dir, 'no', 'images')))
  assert.match(fault.message, 'ENOENT')
  assert.ok(fault.hint)
})

test('a file that cannot be made is IO', async ({ target }) => {
  const sink = new DirectorySink(target)
  await sink.drop()
  await rejectsFault('IO', Promise.resolve(sink.open(imageName('a.img'))))
})

/** Puts a link in the place of what has that name, as a user who may write to `dir` could. */
function exchange(dir: string, name: string, victim: string): void {
  renameSync(join(dir, name), join(dir, 'away'))
  symlinkSync(victim, join(dir, name))
}

test('a link in the place of the partial directory gets no image, and never the name', async ({ dir, target }) => {
  const victim = join(dir, 'victim')
  mkdirSync(victim)
  const before = openFds()
  for (const name of ['images', 'early', 'late']) {
    const at = join(dir, name)
    const sink = new DirectorySink(at)
    const partial = readdirSync(dir).find((each) => each.startsWith(`.${name}.partial-`)) ?? ''
    if (name === 'early') exchange(dir, partial, victim)
    await move(sourceOf(images), sink)
    if (name === 'late') exchange(dir, partial, victim)
    if (name === 'images') sink.seal()
    else assert.match(throwsFault('IO', () => sink.seal()).message, /exchanged/)
    await sink.drop()
    rmSync(join(dir, partial), { force: true })
    assert.equal(readdirSync(victim), [], name)
  }
  assert.equal(readdirSync(dir).sort(), ['images', 'victim'], 'what was moved away is removed')
  assert.is(readdirSync(target).length, images.length)
  assert.is(openFds(), before, 'a descriptor is left')
})

test('nothing gets the name after the parent was moved away', async ({ dir }) => {
  const parent = join(dir, 'parent')
  mkdirSync(parent)
  mkdirSync(join(dir, 'victim'))
  const sink = new DirectorySink(join(parent, 'images'))
  await move(sourceOf(images), sink)
  exchange(dir, 'parent', join(dir, 'victim'))
  assert.match(throwsFault('IO', () => sink.seal()).message, /exchanged/)
  await sink.drop()
  assert.equal(tree(join(dir, 'victim')), [])
  assert.equal(tree(join(dir, 'away')), [])
})

// Source

function fill(target: string, names: readonly string[]): void {
  mkdirSync(target)
  for (const name of names) writeFileSync(join(target, name), bytesOf(name, 1000))
}

test('a directory is read: regular files *.img alone, inventory.img last', async ({ dir, target }) => {
  fill(target, ['inventory.img', 'pages-1.img', 'core-1.img', 'stats-dump', 'dump.log', 'z.img.tmp'])
  writeFileSync(join(dir, 'secret'), 'secret')
  symlinkSync('../secret', join(target, 'link'))
  const sink = new MemorySnapshot(pool)
  assert.equal(await move(directorySource(target), sink), ['core-1.img', 'pages-1.img', 'inventory.img'])
  for (const [name, bytes] of contents(sink)) assert.ok(bytes.equals(bytesOf(name, 1000)), name)
  sink.drop()
})

test('an image that is no regular file is refused, not left out', ({ dir, target }) => {
  fill(target, ['inventory.img'])
  writeFileSync(join(dir, 'secret'), 'secret')
  symlinkSync('../secret', join(target, 'link.img'))
  assert.match(throwsFault('MISSING', () => directorySource(target)).message, 'link.img')
})

test('what was written can be read', async ({ target }) => {
  const written = new DirectorySink(target)
  await move(sourceOf(images), written)
  written.seal()
  const sink = new MemorySnapshot(pool)
  await move(directorySource(target), sink)
  assert.is(sink.images.size, images.length)
  for (const { name, bytes } of images) assert.ok(contents(sink).get(name)?.equals(bytes), name)
  sink.drop()
})

test('an incremental dump without its parent is refused, its parent a link or not', ({ dir, target }) => {
  fill(target, ['inventory.img'])
  symlinkSync('../nowhere', join(target, 'parent'))
  assert.match(throwsFault('MISSING', () => directorySource(target)).message, /^the parent of .*, \.\.\/nowhere,/)
  fill(join(dir, 'second'), ['inventory.img', 'parent'])
  throwsFault('MISSING', () => directorySource(join(dir, 'second')))
})

test('a directory without inventory.img is FAILED_DUMP, and a link is no inventory.img', ({ target }) => {
  fill(target, ['core-1.img'])
  throwsFault('FAILED_DUMP', () => directorySource(target))
  symlinkSync('core-1.img', join(target, 'inventory.img'))
  throwsFault('MISSING', () => directorySource(target))
})

test('a directory that is not there, or is a file, is MISSING', ({ dir, target }) => {
  assert.match(throwsFault('MISSING', () => directorySource(target)).message, 'ENOENT')
  writeFileSync(join(dir, 'file'), '')
  throwsFault('MISSING', () => directorySource(join(dir, 'file')))
})

test('a file name that no image has is NAME', ({ target }) => {
  fill(target, ['inventory.img', '.hidden.img'])
  throwsFault('NAME', () => directorySource(target))
})

test('a file that goes away while it is sent is IO', async ({ target }) => {
  fill(target, ['inventory.img', 'a.img'])
  const source = directorySource(target)
  rmSync(join(target, 'a.img'))
  const sink = new MemorySnapshot(pool)
  assert.match((await rejectsFault('IO', move(source, sink))).message, /a\.img: ENOENT/)
  sink.drop()
})

test('a link or a FIFO in the place of an image is neither followed nor waited for while images are sent', async ({
  dir,
  target,
}) => {
  writeFileSync(join(dir, 'secret'), 'secret')
  for (const size of [10, 2 ** 17]) {
    for (const put of [
      (at: string) => symlinkSync(join(dir, 'secret'), at),
      (at: string) => void check(mkfifo(at, 0o600), 'mkfifo'),
    ]) {
      fill(target, ['inventory.img'])
      const image = join(target, 'a.img')
      writeFileSync(image, Buffer.alloc(size))
      const source = directorySource(target)
      rmSync(image)
      put(image)
      const sink = new MemorySnapshot(pool)
      assert.match((await rejectsFault('MISSING', move(source, sink))).message, /a\.img is not a regular file/)
      sink.drop()
      rmSync(target, { recursive: true })
    }
  }
})

test('a source that is destroyed throws the reason', async ({ target }) => {
  fill(target, ['inventory.img', 'a.img'])
  const source = directorySource(target)
  const reason = new Error('enough')
  source.destroy(reason)
  const reading = (async () => {
    for await (const { name } of source.images) assert.unreachable(name)
  })()
  assert.is(await reasonOf(reading), reason)
})

test.run()
