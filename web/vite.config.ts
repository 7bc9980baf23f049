import { svelte } from '@sveltejs/vite-plugin-svelte';
import { defineConfig } from 'vite';

// The build goes into the Go package that serves it. File names have no hashes: the
// server sends a tag with each file, and the tree keeps one copy of each.
export default defineConfig({
  base: '/ui/',
  plugins: [svelte()],
  build: {
    outDir: '../internal/controlplane/dashboard/dist',
    emptyOutDir: true,
    target: 'es2023',
    modulePreload: { polyfill: false },
    assetsInlineLimit: 0,
    assetsDir: '',
    chunkSizeWarningLimit: 700,
    rolldownOptions: {
      output: {
        entryFileNames: '[name].js',
        chunkFileNames: '[name].js',
        assetFileNames: '[name][extname]',
        banner: '/* Code generated from web/ by "make dashboard". DO NOT EDIT. */',
      },
    },
  },
});
