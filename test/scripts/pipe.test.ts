import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { crc32 } from 'node:zlib'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { closeFd } from '../../lib/kernel/readiness.ts'
import { writeAll } from '../../lib/kernel/transfer.ts'
import { EXTENT } from '../../lib/store/pool.ts'
import { fakeDump, fakeRestore, incrementalCriu } from '../support/fake-criu.ts'
import { mappings } from '../support/mappings.ts'
import { fixtures, giveFolders, type InFolder, run, shell, start } from '../support/run.ts'
import { pattern } from '../support/talk.ts'

const test = suite<InFolder>('scripts/pipe')

const images = join(fixtures, 'images')
const wire = Buffer.from(readFileSync(join(fixtures, 'snapshot.wire.hex'), 'latin1').replace(/\s/g, ''), 'hex')

giveFolders(test)

function sameImages(directory: string): void {
  const names = readdirSync(images)
  assert.equal(readdirSync(directory).sort(), names.sort())
  for (const name of names)
    assert.ok(readFileSync(join(directory, name)).equals(readFileSync(join(images, name))), name)
}

test('a directory becomes the recorded stream, byte for byte', async () => {
  const ran = await run('dump-to-stdout', ['--from-dir', images, '--snapshot', 'fixture'])
  assert.is(ran.code, 0, ran.stderr)
  assert.is(ran.stderr, '')
  assert.ok(ran.stdout.equals(wire))
})

test('a stream becomes the directory again, by pipe, by file, by fd and compressed', async ({ folder }) => {
  const ways = {
    pipe: `dump-to-stdout --from-dir ${images} | restore-from-socket --from - --to-dir pipe`,
    file: `dump-to-stdout --from-dir ${images} > file.img && restore-from-socket --to-dir file < file.img`,
    fd: `restore-from-socket --from fd:7 --to-dir fd 7< file.img`,
    fdpipe: `restore-from-socket --from fd:7 --to-dir fdpipe 7< <(cat file.img)`,
    zstd:
      `dump-to-stdout --from-dir ${images} | zstd -T0 -q > app.img.zst; zstd -dc app.img.zst | ` +
      `restore-from-socket --from - --to-dir zstd`,
  }
  for (const [name, line] of Object.entries(ways)) {
    const ran = await shell(line, { cwd: folder })
    assert.is(ran.code, 0, `${name}: ${ran.stderr}`)
    assert.is(ran.stdout.length + ran.stderr.length, 0, name)
    sameImages(join(folder, name))
  }
  assert.is(statSync(join(folder, 'pipe')).mode & 0o777, 0o700)
  assert.is(statSync(join(folder, 'pipe', 'pages-1.img')).mode & 0o777, 0o600)
})

test('a stream by a unix socket from any sender', async ({ folder }) => {
  const { createServer } = await import('node:net')
  const path = join(folder, 'sock')
  const server = createServer((socket) => socket.end(wire)).listen(path)
  await new Promise((resolve) => server.once('listening', resolve))
  const ran = await run('restore-from-socket', ['--from', `unix:${path}`, '--to-dir', join(folder, 'out')])
  server.close()
  assert.is(ran.code, 0, ran.stderr)
  sameImages(join(folder, 'out'))
})

const damage: [name: string, input: Buffer, code: number, message: RegExp][] = [
  ['nothing', Buffer.alloc(0), 4, /the stream ended before the end of the snapshot/],
  ['text', Buffer.from('hello, this is certainly not a stream\n'), 4, /this is not a criu-ferry stream/],
  ['a cut in the data', wire.subarray(0, 60_000), 4, /the stream ended/],
  ['a cut before the last byte', wire.subarray(0, -1), 4, /the stream ended/],
  ['a byte too many', Buffer.concat([wire, Buffer.from('!')]), 4, /bytes after the end of the snapshot/],
  ['a second stream', Buffer.concat([wire, wire]), 4, /bytes after the end of the snapshot/],
  ['a flipped bit in the pages', flipped(wire, 70_000), 4, /image pages-1.img is damaged/],
  ['a newer version', changedVersion(wire), 4, /the stream has version 2/],
]

function flipped(bytes: Buffer, at: number): Buffer {
  const copy = Buffer.from(bytes)
  copy[at] = (copy[at] as number) ^ 0x10
  return copy
}

function changedVersion(bytes: Buffer): Buffer {
  const copy = Buffer.from(bytes)
  copy.writeUInt16LE(2, 8)
  copy.writeUInt32LE(crc32(copy.subarray(0, 20)), 20)
  return copy
}

for (const [name, input, code, message] of damage) {
  test(`${name}: refused, nothing left behind`, async ({ folder }) => {
    const ran = await run('restore-from-socket', ['--to-dir', join(folder, 'out')], { input })
    assert.is(ran.code, code)
    assert.match(ran.stderr, message)
    assert.match(ran.stderr, /^restore-from-socket: error: [^\n]*\n(restore-from-socket: hint: [^\n]*\n)?$/)
    assert.equal(readdirSync(folder), [])
  })
}

test('an output directory that is there already is not touched', async ({ folder }) => {
  mkdirSync(join(folder, 'out'))
  writeFileSync(join(folder, 'out', 'precious'), '')
  const ran = await run('restore-from-socket', ['--to-dir', join(folder, 'out')], { input: wire })
  assert.is(ran.code, 1)
  assert.match(ran.stderr, /is there already and is not an empty directory/)
  assert.equal(readdirSync(folder), ['out'])
  assert.equal(readdirSync(join(folder, 'out')), ['precious'])
})

test('a full disk: one line, nothing left behind', async ({ folder }) => {
  if (process.geteuid?.() !== 0) return void console.log('skipped: mounting a small disk needs root')
  const line =
    `mount -t tmpfs -o size=64k none ${folder} && restore-from-socket --to-dir ${folder}/out; echo $? ` +
    `$(ls -A ${folder})`
  const ran = await run('unshare', ['--mount', 'bash', '-c', line], { input: wire })
  assert.match(ran.stderr, /^restore-from-socket: error: .*: ENOSPC\nrestore-from-socket: hint: make room/)
  assert.is(ran.stdout.toString(), '1\n')
})

test('a reader that leaves: exit 3, and what is asked for is never half of it', async ({ folder }) => {
  const ran = await shell(`dump-to-stdout --from-dir ${images} | head -c 100 > part; echo \${PIPESTATUS[0]}`, {
    cwd: folder,
  })
  assert.is(ran.stdout.toString(), '3\n')
  assert.match(ran.stderr, /^dump-to-stdout: error: .*other end went away/)
})

test('no stream to or from a terminal', async ({ folder }) => {
  const out = await shell(`script -qec "dump-to-stdout --from-dir ${images}" /dev/null`, { cwd: folder })
  assert.is(out.code, 2)
  assert.match(out.stdout.toString(), /stdout is a terminal/)
  const input = await shell('script -qec "restore-from-socket --to-dir out" /dev/null', { cwd: folder })
  assert.is(input.code, 2)
  assert.match(input.stdout.toString(), /stdin is a terminal/)
})

test('a directory that is no finished dump', async ({ folder }) => {
  writeFileSync(join(folder, 'core-1.img'), '')
  const unfinished = await run('dump-to-stdout', ['--from-dir', folder])
  assert.is(unfinished.code, 4)
  assert.match(unfinished.stderr, /no inventory.img in/)
  writeFileSync(join(folder, 'inventory.img'), '')
  symlinkSync('.', join(folder, 'parent'))
  const chained = await run('dump-to-stdout', ['--from-dir', folder])
  assert.is(chained.code, 4)
  assert.match(chained.stderr, /lead in a circle/)
  const missing = await run('dump-to-stdout', ['--from-dir', join(folder, 'nowhere')])
  assert.is(missing.code, 1)
  assert.match(missing.stderr, /cannot read the directory .* \(ENOENT\)/)
})

test('--listen on both sides: a dump and a restore that somebody else starts', async ({ folder }) => {
  const pages = pattern(3_000_000)
  const work = join(folder, 'work')
  const pipeline = start('bash', [
    '-c',
    `set -o pipefail; dump-to-stdout -v --listen -D ${work} | restore-from-socket -v --listen -D ${work}`,
  ])
  await pipeline.says(/streamer-capture.sock/)
  const dump = fakeDump(join(work, 'streamer-capture.sock'))
  await dump.image('pages-1.img', pages)
  await dump.image('inventory.img', Buffer.from('x'))
  dump.close()
  await pipeline.says(/listening on .*streamer-serve.sock/)
  const restore = fakeRestore(join(work, 'streamer-serve.sock'))
  assert.ok((await restore.image('pages-1.img'))?.equals(pages))
  restore.close()
  assert.is((await pipeline.ended).code, 0)
  assert.equal(readdirSync(work), [])
})

test('--listen: what is offered to a criu cannot be written any more', async ({ folder }) => {
  const restoring = start('restore-from-socket', ['-v', '--listen', '-D', folder, '--reserve', '0'], { input: wire })
  await restoring.says(/listening on .*streamer-serve.sock/)
  const anonymous = mappings(restoring.child.pid as number).filter(({ path }) => path === '')
  const largest = (rights: string): number =>
    Math.max(0, ...anonymous.filter((each) => each.rights === rights).map(({ begin, end }) => end - begin))
  assert.ok(largest('r--p') >= EXTENT)
  const criu = fakeRestore(join(folder, 'streamer-serve.sock'))
  assert.ok((await criu.image('inventory.img'))?.equals(readFileSync(join(images, 'inventory.img'))))
  criu.close()
  assert.is((await restoring.ended).code, 0)
})

test('--listen: a criu that sends only what changed is refused before it has sent anything', async ({ folder }) => {
  const work = join(folder, 'work')
  const dumping = start('dump-to-stdout', ['-v', '--listen', '-D', work])
  await dumping.says(/listening/)
  await incrementalCriu(work, folder)
  const { code, stdout, stderr } = await dumping.ended
  assert.equal([code, stdout.length], [1, 0])
  assert.match(stderr, /error: criu dumps with --prev-images-dir: pages of the dump before would be missing\n.*hint: /)
  assert.equal(readdirSync(work), [])
})

test('a dump that fails half way: the receiver learns it and writes nothing', async ({ folder }) => {
  const work = join(folder, 'work')
  const pipeline = start('bash', [
    '-c',
    `dump-to-stdout -v --listen -D ${work} | restore-from-socket --to-dir ${folder}/out; echo "codes ` +
      `\${PIPESTATUS[@]}" >&2`,
  ])
  await pipeline.says(/listening/)
  const dump = fakeDump(join(work, 'streamer-capture.sock'))
  const pipe = dump.open('pages-1.img')
  await writeAll(pipe, pattern(500_000))
  closeFd(pipe)
  dump.close()
  await pipeline.says(/codes 4 4/)
  assert.match(pipeline.stderr(), /restore-from-socket: error: the source gave up: the dump did not finish/)
  assert.not(existsSync(join(folder, 'out')))
  assert.equal(readdirSync(folder), ['work'])
})

for (const signal of ['SIGTERM', 'SIGINT'] as const) {
  test(`${signal} while a dump is in progress: exit 128 + n, socket removed`, async ({ folder }) => {
    const dumping = start('dump-to-stdout', ['-v', '--listen', '-D', folder])
    await dumping.says(/listening/)
    const dump = fakeDump(join(folder, 'streamer-capture.sock'))
    const pipe = dump.open('pages-1.img')
    await writeAll(pipe, pattern(500_000))
    const ran = await dumping.stop(signal)
    assert.is(ran.code, signal === 'SIGTERM' ? 143 : 130)
    assert.match(ran.stderr, new RegExp(`error: stopped by ${signal}`))
    closeFd(pipe)
    dump.close()
    assert.equal(readdirSync(folder), [])
  })
}

test('no temporary directory of ours is left', () => {
  const left = readdirSync(tmpdir()).filter((name) => /^criu-ferry\./.test(name))
  assert.equal(left, [])
})

test.run()
