/** The programs in docs/api.md, run word for word against the built package. */
import {
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { dumpAll, fakeDump } from './support/fake-criu.ts'
import { eventually, fixtures, root, run, shell, start } from './support/run.ts'

const test = suite('api')

const place = mkdtempSync(join(tmpdir(), 'api-'))
const modules = join(place, 'node_modules')
const text = readFileSync(join(root, 'docs', 'api.md'), 'utf8')
/** By name: the blocks whose first line is a comment with a file's name. */
const programs = new Map(
  [...text.matchAll(/^```js\n\/\/ (\S+)\n([\s\S]*?)^```$/gm)].map(([, name, code]) => [name, code]),
)

/** The package as npm installs it: package.json and dist. */
test.before(async () => {
  mkdirSync(join(modules, 'criu-ferry'), { recursive: true })
  copyFileSync(join(root, 'package.json'), join(modules, 'criu-ferry', 'package.json'))
  const options = ['-p', join(root, 'scripts', 'tsconfig.build.json'), '--outDir', join(modules, 'criu-ferry', 'dist')]
  const built = await run(join(root, 'node_modules', '.bin', 'tsc'), options)
  assert.is(built.code, 0, built.stdout.toString())
  for (const name of readdirSync(join(root, 'node_modules'))) {
    if (!name.startsWith('.')) symlinkSync(join(root, 'node_modules', name), join(modules, name))
  }
  for (const [name = '', code = ''] of programs) writeFileSync(join(place, name), code)
})

test.after(() => rmSync(place, { recursive: true }))

function contents(directory: string): Record<string, string> {
  return Object.fromEntries(readdirSync(directory).map((name) => [name, readFileSync(join(directory, name), 'hex')]))
}

const restore = `node ${join(modules, 'criu-ferry', 'dist', 'scripts', 'restore-from-socket.js')}`

test('a directory goes into a file, and comes back as it was', async () => {
  const images = join(fixtures, 'images')
  const command = `cd ${place} && node send.mjs ${images} app.img && ${restore} --from - --to-dir copy < app.img`
  const moved = await shell(command)
  assert.is(moved.code, 0, moved.stderr)
  assert.equal(contents(join(place, 'copy')), contents(images))
})

test('a directory that is no dump is an error, and the file has no end', async () => {
  const failed = await shell(`cd ${place} && mkdir empty && node send.mjs empty none.img`)
  assert.is(failed.code, 1)
  assert.match(failed.stderr, 'inventory.img')
})

test('a dump goes to a port', async () => {
  const images = { 'pages-1.img': Buffer.alloc(300_000, 'page') }
  const chunks: Buffer[] = []
  const server = net.createServer((socket) => socket.on('data', (chunk) => chunks.push(chunk))).listen(0, '127.0.0.1')
  await new Promise((resolve) => server.once('listening', resolve))
  const port = (server.address() as net.AddressInfo).port
  const carrying = start(process.execPath, [join(place, 'carry.mjs'), join(place, 'work'), String(port)])
  const socket = join(place, 'work', 'streamer-capture.sock')
  const criu = await eventually(() => {
    try {
      return fakeDump(socket)
    } catch {
      return undefined
    }
  }, 'its socket')
  await dumpAll(criu, images)
  const { code, stdout, stderr } = await carrying.ended
  assert.is(code, 0, stderr)
  assert.is(stdout.toString(), '2 images, 300009 bytes\n')
  server.close()
  writeFileSync(join(place, 'carried.img'), Buffer.concat(chunks))
  const restored = await shell(`cd ${place} && ${restore} --from - --to-dir carried < carried.img`)
  assert.is(restored.code, 0, restored.stderr)
  assert.is(readFileSync(join(place, 'carried', 'pages-1.img')).compare(images['pages-1.img']), 0)
})

test('the package has types', async () => {
  const strict = ['--noEmit', '--strict', '--skipLibCheck', 'false', '--module', 'nodenext', '--target', 'es2023']
  for (const [name = '', code = ''] of programs) {
    const file = join(place, name.replace('.mjs', '.mts'))
    writeFileSync(file, code)
    const checked = await run(join(root, 'node_modules', '.bin', 'tsc'), [...strict, '--types', 'node', file], {
      cwd: place,
    })
    assert.is(checked.code, 0, checked.stdout.toString())
  }
  assert.is(programs.size, 2)
})

test.run()
